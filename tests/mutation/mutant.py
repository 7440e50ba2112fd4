"""One change of a kernel's text."""
import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutant:
    file: str
    name: str  # what is wrong then
    kind: str  # what kind of thing was changed
    old: str   # stands exactly once in the file
    new: str
    equivalent: str = ""  # why no result, and no finding, can differ


def of(file, *changes):
    return [Mutant("kernels/" + file, *change) for change in changes]
