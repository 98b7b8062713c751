"""`python -m depthvlm`: the same as the `depthvlm` command."""

from .cli.app import main

if __name__ == "__main__":
    main()
