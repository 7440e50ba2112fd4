#!/usr/bin/python3
"""launch/debian_dataset.py on a tiny archive whose notes and clicks are known by hand."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "launch" / "debian_dataset.py"
spec = importlib.util.spec_from_file_location("debian_dataset", PROGRAM)
dataset = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dataset)

PACKAGES = """\
Package: zlib-dev
Source: zlib (1.2-3)
Version: 1.2-3+b1
Description: compression library
Description-md5: 01
Provides: libz-dev, libz (= 1.2), crunch
Tag: devel::{lang:c,library}, role::devel-lib,
 works-with::file
Section: libdevel

Package: gcc
Version: 12
Description: compiler
Description-md5: 02
Section: non-free/devel

Package: zlib-dev
Source: zlib
Version: 1.1
Description: an older version that does not count
Description-md5: 03
Section: libdevel

Package: zz
Version: 1
Description: short name
 no translation: the text stands here
Description-md5: 04
Provides: crunch
Section: utils
"""

TRANSLATION = """\
Package: zlib-dev
Description-md5: 01
Description-en: compression library – development
 The library that  compresses
 and expands:
   * fast
 .
 Second paragraph.
 .

Package: gcc
Description-md5: 02
Description-en: the compiler
 .
 Begins with an empty paragraph.
"""

SOURCES = """\
Package: user-b
Version: 1.0-9
Build-Depends: gcc

Package: user-b
Version: 1.0-10
Build-Depends: libz-dev (>= 1.2) | gcc, gcc:any <!nocheck>, zlib-dev,
Build-Depends-Arch: zz [!amd64]
Build-Depends-Indep: zz [linux-any]

Package: nobody
Version: 1
Build-Depends: unknown-package | gcc

Package: user-a
Version: 2
Build-Depends: crunch, gcc [arm64], zlib-dev [amd64 arm64]
Build-Depends-Indep: gcc [!linux-any]

Package: without
Version: 1
"""


def run(*args):
    return subprocess.run([sys.executable, PROGRAM, *args], capture_output=True, text=True, check=False)


class TinyArchive(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.archive, self.out = pathlib.Path(folder.name, "archive"), pathlib.Path(folder.name, "out")
        self.archive.mkdir()
        for name, text in ("Packages", PACKAGES), ("Sources", SOURCES), ("Translation-en", TRANSLATION):
            (self.archive / name).write_text(text, encoding="utf-8")

    def make(self, arch="amd64"):
        return run("--from", self.archive, "--arch", arch, "-o", self.out)

    def test_notes(self):
        result = self.make()
        self.assertEqual(result.returncode, 0, result.stderr)
        notes = [json.loads(line) for line in (self.out / "notes.jsonl").read_text(encoding="utf-8").splitlines()]
        self.assertEqual(notes, [
            {"id": 0, "name": "zlib-dev", "source": "zlib", "title": "compression library – development",
             "content": "The library that compresses and expands: * fast\nSecond paragraph.", "category": "libdevel",
             "hashtags": ["devel::lang:c", "devel::library", "role::devel-lib", "works-with::file"]},
            {"id": 1, "name": "gcc", "source": "gcc", "title": "the compiler",
             "content": "Begins with an empty paragraph.", "category": "devel", "hashtags": []},
            {"id": 2, "name": "zz", "source": "zz", "title": "short name",
             "content": "no translation: the text stands here", "category": "utils", "hashtags": []},
        ])

    # user-a: crunch is provided by zlib-dev and zz, the shorter name counts. user-b: the newer version; libz-dev is
    # zlib-dev, which counts once. The architecture decides about clauses with a list.
    def test_clicks(self):
        self.make()
        self.assertEqual((self.out / "clicks.tsv").read_text(encoding="utf-8"), "user-a\t2 0\nuser-b\t0 1 2\n")

    def test_clicks_of_another_architecture(self):
        self.make("arm64")
        self.assertEqual((self.out / "clicks.tsv").read_text(encoding="utf-8"), "user-a\t2 1 0\nuser-b\t0 1 2\n")

    def test_made_once(self):
        self.make()
        before = (self.out / "clicks.tsv").stat().st_mtime_ns
        (self.archive / "Packages").unlink()
        again = self.make()
        self.assertEqual(again.returncode, 0)
        self.assertIn("made already", again.stderr)
        self.assertEqual((self.out / "clicks.tsv").stat().st_mtime_ns, before)

    def test_bad_input_is_named_and_leaves_nothing(self):
        cases = {
            "not UTF-8": ("Packages", b"Package: a\nDescription: \xff\n"),
            "no field Package": ("Packages", b"Package: a\n\nSection: x\n"),
            "holds no stanza": ("Packages", b"<html>\n404\n</html>\n"),
            "not of one archive": ("Sources", b"Package: a\nVersion: 1\nBuild-Depends: other\n"),
        }
        for message, (name, content) in cases.items():
            with self.subTest(message):
                self.setUp()
                (self.archive / name).write_bytes(content)
                result = self.make()
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(message, result.stderr)
                self.assertIn(str(self.archive / name), result.stderr)
                self.assertFalse((self.out / "notes.jsonl").exists())
                self.assertFalse((self.out / "clicks.tsv").exists())

    def test_missing_file_is_named(self):
        (self.archive / "Sources").unlink()
        result = self.make()
        self.assertNotEqual(result.returncode, 0)
        self.assertIn(str(self.archive / "Sources"), result.stderr)
        self.assertFalse((self.out / "notes.jsonl").exists())


class ConfiguredSources(unittest.TestCase):
    """Which of the machine's package sources may be the main archive."""

    def candidates(self, files):
        with tempfile.TemporaryDirectory() as folder:
            etc = pathlib.Path(folder)
            (etc / "sources.list.d").mkdir()
            for name, text in files.items():
                (etc / name).write_text(text, encoding="utf-8")
            return dataset.archive_candidates(etc, "bookworm")

    def test_one_line_format(self):
        found = self.candidates({"sources.list": (
            "# deb http://off.example/debian bookworm main\n"
            "deb cdrom:[Debian]/ bookworm main\n"
            "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib # comment\n"
            "deb http://a.example/debian bookworm-updates main\n"
            "deb http://a.example/debian-security bookworm-security main\n"
            "deb-src http://b.example/debian bookworm main\n"
            "deb http://third.example/ bookworm stable\n")})
        self.assertEqual(found, [{"arch": "amd64", "signed-by": "/k.gpg", "uris": "http://a.example/debian",
                                  "suites": "bookworm", "components": "main contrib"}])

    def test_deb822_format(self):
        found = self.candidates({
            "sources.list.d/old.sources.save": "Types: deb\nURIs: http://x.example\nSuites: bookworm\nComponents: main\n",
            "sources.list.d/debian.sources": (
                "Types: deb deb-src\n# a comment\nURIs: http://a.example/debian http://b.example/debian\n"
                "Suites: stable bookworm bookworm-updates\nComponents: main\nSigned-By:\n -----BEGIN\n .\n key\n\n"
                "Enabled: no\nTypes: deb\nURIs: http://off.example\nSuites: bookworm\nComponents: main\n")})
        self.assertEqual([(s["uris"], s["suites"]) for s in found],
                         [("http://a.example/debian", "bookworm"), ("http://b.example/debian", "bookworm"),
                          ("http://a.example/debian", "stable"), ("http://b.example/debian", "stable")])
        self.assertEqual(found[0]["signed-by"], "\n -----BEGIN\n .\n key")

    def test_fetched_stanza_keeps_the_key_and_asks_for_sources(self):
        with tempfile.TemporaryDirectory() as folder:
            stanza = {"arch": "i386", "signed-by": "\n -----BEGIN\n .\n key", "uris": "http://a.example/debian",
                      "suites": "bookworm", "components": "main contrib", "types": "deb"}
            dataset.write_apt_folder(pathlib.Path(folder), stanza, "amd64")
            text = pathlib.Path(folder, "sources", "archive.sources").read_text(encoding="utf-8")
        fields = dict(next(dataset.Deb822.iter_paragraphs(text.splitlines(), use_apt_pkg=False)))
        self.assertEqual(fields, {"signed-by": "\n -----BEGIN\n .\n key", "uris": "http://a.example/debian",
                                  "suites": "bookworm", "components": "main", "types": "deb deb-src",
                                  "architectures": "amd64", "languages": "en",
                                  "targets": "Packages Sources Translations"})


if __name__ == "__main__":
    unittest.main()
