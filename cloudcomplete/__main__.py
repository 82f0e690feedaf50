"""`python -m cloudcomplete`: the same as the command `cloudcomplete`."""

from cloudcomplete.cli import main

if __name__ == "__main__":
    main()
