"""`syncattn` and `python -m syncattn`."""

import sys


def main() -> None:
    """Run the command line, or say what to install when its libraries are missing."""
    try:
        from syncattn.cli import app
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("syncattn"):
            raise
        sys.exit(f"syncattn: the command line needs '{error.name}': install syncattn with its 'train' extra")
    app()


if __name__ == "__main__":
    main()
