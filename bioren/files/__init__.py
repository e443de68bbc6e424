"""Files that are whole or absent, and the container of models and populations."""
