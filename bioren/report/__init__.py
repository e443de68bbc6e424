"""The page that `bioren effects --report` writes."""
