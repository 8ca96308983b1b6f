"""The study's natural text: the documentation of Linux, Git and Perl, from Debian's packages.

  apt-get download linux-doc-6.1=6.1.192-2 git-doc=1:2.39.5-0+deb12u3 perl-doc=5.36.0-7+deb12u4
  python -m experiments.study.prose *.deb

writes a file a document under data/text, 32 MB of technical English. Anyone can have the same bytes
again: snapshot.debian.org keeps packages that have been replaced. `dpkg-deb` unpacks them.
Licences: GPL-2.0 (Linux, Git), GPL-1+ or Artistic (Perl).
"""

import dataclasses
import hashlib
import pathlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator

from ratjax.errors import InputError

FOLDER = pathlib.Path("data/text")


@dataclasses.dataclass(frozen=True)
class Package:
    """A package, and which of its files are documents.

    Attributes:
      name: with the version.
      sha256: of the package as downloaded.
      documents: a pattern that the whole path must match; its group names the document.
    """

    name: str
    sha256: str
    documents: str


PACKAGES = (
    Package(
        "linux-doc-6.1_6.1.192-2",
        "d1d1b5a602f0d439ecc39e713e044bf2df30d839fb4bf8a7b859ba3273c47993",
        r".*/html/_sources/(?!translations/)(.*)\.rst\.txt",
    ),
    Package(
        "git-doc_2.39.5-0+deb12u3",
        "3c89668a11053a6bafade3de1f611f4613db31e082af63f43d8c5b69ad8795ec",
        r".*/doc/git-doc/(.*)\.txt",
    ),
    Package(
        "perl-doc_5.36.0-7+deb12u4",
        "f4269cff4576d6f02a6756df842988e58451c7e945b08517dd235531b24e48f8",
        r".*/(?!perltoc)([^/]*)\.pod",  # perltoc repeats the others' headings
    ),
)


def documents(archive: tarfile.TarFile, pattern: str) -> Iterator[tuple[str, str]]:
    """Name and text of each document in a package's files. What is not UTF-8 is left out."""
    for member in archive:
        found = re.fullmatch(pattern, member.name)
        if found and member.isfile():
            try:
                yield found[1].replace("/", "."), archive.extractfile(member).read().decode("utf-8")
            except UnicodeDecodeError:
                continue


def write(paths: list[str], folder: pathlib.Path = FOLDER) -> int:
    """Writes the documents of all packages into `folder`; returns how many there are.

    Raises:
      InputError: a package is missing, or not the one that the study read.
    """
    found = {hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest(): path for path in paths}
    for package in PACKAGES:
        if package.sha256 not in found:
            raise InputError(
                f"{package.name}_all.deb: not among the files given (by SHA-256 {package.sha256}); "
                "download it with apt-get, or from snapshot.debian.org"
            )
    count = 0
    for package in PACKAGES:
        into = folder / package.name.partition("_")[0]
        into.mkdir(parents=True, exist_ok=True)
        command = ["dpkg-deb", "--fsys-tarfile", found[package.sha256]]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE) as unpacked,
            tarfile.open(fileobj=unpacked.stdout, mode="r|") as archive,
        ):
            for name, text in documents(archive, package.documents):
                (into / f"{name}.txt").write_text(text, "utf-8")
                count += 1
    return count


if __name__ == "__main__":
    try:
        print(f"{write(sys.argv[1:])} documents in {FOLDER}")
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
