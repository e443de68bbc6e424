"""docs/theory.md lists the constants of the method, with the values that the code has."""

import re
from pathlib import Path

from bioren.effects import constants
from bioren.effects.states import StateOptions

PAGE = Path(__file__).parents[1] / "docs" / "theory.md"


def test_the_documentation_lists_every_constant_with_its_value():
    in_code = {name: getattr(constants, name) for name in dir(constants) if name.isupper()}
    in_code |= StateOptions()._asdict()
    del in_code["iterations"]  # a limit that is hardly ever reached
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: float(value) for name, value in rows} == in_code
