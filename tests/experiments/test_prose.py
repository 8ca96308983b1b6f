"""The study's natural text out of packages."""

import io
import re
import tarfile

import pytest

from experiments.study import prose
from ratjax.errors import InputError

SOURCES = "./usr/share/doc/linux-doc-6.1/html/_sources"
FILES = {
    f"{SOURCES}/PCI/pci.rst.txt": b"How to write PCI drivers: the bus.",
    f"{SOURCES}/translations/it/pci.rst.txt": b"Come scrivere",
    f"{SOURCES}/old.rst.txt": b"\xff\xfe not UTF-8",
    "./usr/share/doc/linux-doc-6.1/html/pci.html": b"<p>",
}


def archive():
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as made:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    raw.seek(0)
    return tarfile.open(fileobj=raw, mode="r|")


def test_documents_are_the_english_sources():
    with archive() as files:
        found = list(prose.documents(files, prose.PACKAGES[0].documents))
    assert found == [("PCI.pci", "How to write PCI drivers: the bus.")]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("./usr/share/doc/git-doc/git-add.txt", "git-add"),
        ("./usr/share/doc/git-doc/howto/new-command.txt", "howto/new-command"),
        ("./usr/share/perl/5.36.0/pod/perlop.pod", "perlop"),
        ("./usr/share/perl/5.36.0/pod/perltoc.pod", None),
    ],
)
def test_what_is_a_document(path, name):
    found = [m[1] for p in prose.PACKAGES[1:] if (m := re.fullmatch(p.documents, path))]
    assert found == ([name] if name else [])


def test_another_package_is_refused(tmp_path):
    other = tmp_path / "linux-doc-6.1_6.1.192-2_all.deb"
    other.write_bytes(b"another")
    with pytest.raises(InputError, match=r"linux-doc-6\.1_6\.1\.192-2_all\.deb: not among"):
        prose.write([str(other)], tmp_path / "text")
    assert not (tmp_path / "text").exists()
