"""`python -m worker` is `aoai-worker`."""

from worker.cli import main

if __name__ == "__main__":
    main()
