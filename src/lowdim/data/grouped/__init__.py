"""Pictures whose classes go with something else: the usual sets from their folders, and emoji of people."""
