"""``python -m lowdim``, for torchrun and for machines whose PATH lacks the program."""

from lowdim.cli import main

if __name__ == "__main__":
    main()
