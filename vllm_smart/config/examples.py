"""The example settings of `configs/`, also from an installed wheel."""

from pathlib import Path

from vllm_smart.errors import ConfigError

# The wheel carries a copy inside the package (pyproject.toml); a clone has the folder itself.
_IN_WHEEL = Path(__file__).parents[1] / "configs"
_IN_CLONE = Path(__file__).parents[2] / "configs"


def example_names() -> list[str]:
    """Names of all examples, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def example_text(name: str) -> str:
    """The YAML of an example, comments included.

    Raises:
        ConfigError: there is no such example; it names those that there are.
    """
    if name not in example_names():
        raise ConfigError(f"{name!r} is no example. There are: {', '.join(example_names())}.")
    return (_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def write_example(name: str, path: Path) -> None:
    """Write an example's YAML to a file that does not exist yet.

    Raises:
        ConfigError: as for `example_text`; or the file exists, or cannot be written.
    """
    text = example_text(name)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. Give another path, or remove what is there."
        ) from error


def example_summary(name: str) -> str:
    """What an example is for: the first line of its YAML, which is a comment.

    Raises:
        ConfigError: as for `example_text`.
    """
    return example_text(name).splitlines()[0].removeprefix("#").strip().removesuffix(":")


def _folder() -> Path:
    return _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CLONE
