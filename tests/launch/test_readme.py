#!/usr/bin/python3
"""What README.md tells a reader to do, done.

test_readme.py NOTELLM MPIEXEC [unittest options]
"""

import pathlib
import re
import shlex
import sys
import tempfile
import unittest

from program import run
from test_commands import write_notes_and_clicks


class ReadMe(unittest.TestCase):
    # In a copy of the demo's configuration, with the keys set that it names and no others.
    def test_your_own_data(self):
        sources = pathlib.Path(__file__).resolve().parents[2]
        section = (sources / "README.md").read_text(encoding="utf-8").split("## Your own data")[1]
        commands = [line.split("#")[0] for line in section.split("```")[1].strip().splitlines()]
        self.assertEqual([line.split()[:2] for line in commands],
                         [["notellm", command] for command in ("prepare", "train", "evaluate", "embed", "neighbors")])
        demo = (sources / "configs" / "demo.yaml").read_text(encoding="utf-8")
        for key, line, value in (("data.notes", r"notes: \S+", "notes: notes.jsonl"),
                                 ('data.title: "{title}"', "title: .*", 'title: "{title}"'),
                                 ("data.shards", "shards: .*", "shards: shards"),
                                 ("data.clicks.files", r"files: \[.*?\]", "files: [clicks.tsv]"),
                                 ("data.clicks.stop_share", "stop_share: [^,]+", "stop_share: 1"),
                                 ("train.run", "run: .*", "run: run")):
            self.assertIn(f"`{key}`", section)
            demo, found = re.subn(rf"(?<=[ {{]){line}", value, demo)
            self.assertEqual(found, 1, key)
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            write_notes_and_clicks(folder)
            (folder / "run.yaml").write_text(demo, encoding="utf-8")
            for line in commands:
                words = shlex.split(line)[1:]
                if words[0] == "train":
                    words += ["--set", "train.steps=2", "train.pairs_per_step=32"]
                result = run(words, folder=folder)
                self.assertEqual(result.returncode, 0, line + "\n" + result.stdout + result.stderr)
            self.assertIn("a title", result.stdout)
            self.assertLessEqual({"shards", "run", "report.json", "vectors.h5"}, {path.name for path in folder.iterdir()})


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
