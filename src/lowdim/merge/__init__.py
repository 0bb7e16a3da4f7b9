"""Several networks made one."""
