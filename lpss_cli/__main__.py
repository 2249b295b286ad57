"""``python -m lpss_cli``."""

from lpss_cli.cli.app import main

if __name__ == "__main__":
    main()
