"""Which versions of tables and models stay, and removing the others."""
