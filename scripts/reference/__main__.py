from scripts.reference.pages import PAGES


def main() -> None:
    for path, render in PAGES.items():
        path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
