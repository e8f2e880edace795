"""`syncattn` and `python -m syncattn`."""

import sys

from syncattn import __version__
from syncattn.starting import stopped_at_once


def main() -> None:
    """Run the command line; where its libraries are missing, what needs none, or say what to install."""
    with stopped_at_once():  # until a command says that it has started
        try:
            from syncattn.cli.app import app
        except ModuleNotFoundError as error:
            if error.name and error.name.startswith("syncattn"):
                raise
            sys.exit(_with_torch_alone(sys.argv[1:], str(error.name)))
        app()


def _with_torch_alone(arguments: list[str], missing: str) -> str | None:
    """Do what needs no extra; else what to say."""
    if arguments == ["doctor"]:
        from syncattn.cli.doctor import doctor_command

        doctor_command()
        return None
    if arguments == ["--version"]:
        print(f"syncattn {__version__}")
        return None
    return (
        f"syncattn: the command line needs '{missing}': install syncattn with its 'train' extra "
        "(`syncattn doctor` and `syncattn --version` work without it)"
    )


if __name__ == "__main__":
    main()
