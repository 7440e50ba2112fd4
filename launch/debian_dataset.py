#!/usr/bin/python3
"""Makes a real data set of notes and clicks from the metadata of Debian's archive.

Binary packages are notes, source packages are users, and the build dependencies that a source package declares, in
its order, are that user's clicks. The metadata (Packages, Sources, Translation-en; about 25 MB) come from the package
sources that this machine has configured, by apt itself into a private folder: the system's own lists stay as they are.

DIR/notes.jsonl  {"id", "name", "source", "title", "content", "category", "hashtags"}, one note a line
DIR/clicks.tsv   user <tab> id id id ...

Only the main component of the Debian archive of this machine's release and architecture is read. Made once: where both
files exist, the program says so and ends.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

FILES = ("Packages", "Sources", "Translation-en")
# Names that a suite may have beside the release's codename.
SUITE_ALIASES = ("oldoldstable", "oldstable", "stable", "testing", "unstable", "sid")
# python3-debian reads this format by itself; the faster python3-apt is not needed.
PLAIN = {"use_apt_pkg": False}


class DatasetError(Exception):
    """What was found, where, and what to do."""


def say(text):
    print(f"debian_dataset: {text}", file=sys.stderr, flush=True)


try:
    from debian.deb822 import Deb822, PkgRelation
    from debian.debian_support import DpkgArchTable, Version
except ImportError:
    sys.exit("debian_dataset: the Python module `debian` is missing: run launch/install_packages.sh (package "
             f"python3-debian) and start this program with /usr/bin/python3 (this is {sys.executable})")


# --- where the archive is, and its metadata -------------------------------------------------------------------------

def one_line_sources(text):
    """The `deb` lines of a .list file as deb822 fields, in small letters."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
        if match:
            options, uri, suite, components = match.groups()
            fields = dict(option.split("=", 1) for option in (options or "").split() if "=" in option)
            yield {**fields, "uris": uri, "suites": suite, "components": components.strip()}


def deb822_sources(text):
    """The enabled `deb` stanzas of a .sources file, one for each of their addresses."""
    for stanza in Deb822.iter_paragraphs(text.splitlines(), **PLAIN):
        fields = {key.lower(): value for key, value in stanza.items()}
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in ("no", "false"):
            for uri in fields.get("uris", "").split():
                yield {**fields, "uris": uri}


def configured_sources(etc):
    """All package sources under the folder `etc` (/etc/apt), in apt's order."""
    parts = etc / "sources.list.d"
    for path in [etc / "sources.list", *(sorted(parts.iterdir()) if parts.is_dir() else [])]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        parse = deb822_sources if path.suffix == ".sources" else one_line_sources
        yield from parse(path.read_text(encoding="utf-8"))


def archive_candidates(etc, codename):
    """Those sources that may be the main archive of the release, under its codename first, as stanzas to fetch."""
    found = []
    for source in configured_sources(etc):
        suites = [s for s in source.get("suites", "").split() if s == codename or s in SUITE_ALIASES]
        if "main" in source.get("components", "").split() and not source["uris"].startswith("cdrom:"):
            found += [{**source, "suites": suite} for suite in suites]
    return sorted(found, key=lambda source: source["suites"] != codename)


def write_apt_folder(folder, stanza, arch):
    """A private apt configuration that knows of one source alone. Returns the path of its configuration file."""
    for name in ("lists/partial", "cache/archives/partial", "sources"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # apt knows the one-line options under these names too, but for arch, lang and target.
    fields = {key: value for key, value in stanza.items() if key not in ("arch", "lang", "target")}
    fields |= {"types": "deb deb-src", "components": "main", "architectures": arch, "languages": "en",
               "targets": "Packages Sources Translations"}
    text = "".join(f"{key}: {value}\n" for key, value in fields.items())
    (folder / "sources/archive.sources").write_text(text, encoding="utf-8")
    config = folder / "apt.conf"
    config.write_text(f"""
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{folder}/sources";
Dir::State::lists "{folder}/lists";
Dir::Cache "{folder}/cache";
Acquire::GzipIndexes "false";  // python3-debian reads plain text
Acquire::Retries "3";
#clear Acquire::Languages;
Acquire::Languages {{ "en"; }};
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Sandbox::User "root";     // apt's own user may not enter this folder
""", encoding="utf-8")
    return config


def fetch(folder, stanza, arch):
    """Fetches from one source. Returns {file: path}, or None if it is not Debian's archive or cannot be reached."""
    say(f"fetching {', '.join(FILES)} of {stanza['suites']}/main from {stanza['uris']} with apt")
    config = write_apt_folder(folder, stanza, arch)
    if subprocess.run(["apt-get", "-c", config, "-q", "update"], stdout=sys.stderr, check=False).returncode != 0:
        return None
    targets = subprocess.run(["apt-get", "-c", config, "indextargets", "--format",
                              "$(CREATED_BY)|$(ORIGIN)|$(FILENAME)"], capture_output=True, text=True, check=True).stdout
    paths = {}
    for line in targets.splitlines():
        kind, origin, path = line.split("|", 2)
        if origin == "Debian" and os.path.exists(path):
            paths["Translation-en" if kind == "Translations" else kind] = pathlib.Path(path)
    return paths if set(paths) == set(FILES) else None


def fetch_archive(folder, arch):
    """Fetches the metadata of this machine's release into `folder`. Returns {file: path}."""
    release = pathlib.Path("/etc/os-release").read_text(encoding="utf-8")
    match = re.search(r'^VERSION_CODENAME="?(\w+)', release, re.MULTILINE)
    codename = match[1] if match else "sid"
    candidates = archive_candidates(pathlib.Path("/etc/apt"), codename)
    if not candidates:
        raise DatasetError(f"no package source for {codename}/main in /etc/apt/sources.list and /etc/apt/sources.list.d: "
                           "add Debian's archive there, or give a folder with Packages, Sources and Translation-en (--from)")
    for stanza in candidates:
        shutil.rmtree(folder / "sources", ignore_errors=True)
        paths = fetch(folder, stanza, arch)
        if paths:
            return paths
        say(f"{stanza['uris']} gave no Packages, Sources and Translation-en of Debian's archive")
    raise DatasetError(f"cannot fetch the archive's metadata from any of: {', '.join(c['uris'] for c in candidates)}; "
                       "this needs the network once: check it (`apt-get update`) and run again; or give a folder "
                       "with Packages, Sources and Translation-en (--from)")


# --- metadata to notes and clicks -----------------------------------------------------------------------------------

def stanzas(files, name, fields):
    """The stanzas of a metadata file, a line on stderr now and then."""
    path = files[name]
    start = shown = time.monotonic()
    count = 0
    try:
        with open(path, encoding="utf-8") as file:
            for stanza in Deb822.iter_paragraphs(file, fields=fields, **PLAIN):
                count += 1
                if fields[0] not in stanza:
                    raise DatasetError(f"{path}: stanza {count} has no field {fields[0]}: not the file it should be, or damaged")
                if time.monotonic() - shown > 2:
                    shown = time.monotonic()
                    say(f"{name}: {count:,} stanzas")
                yield stanza
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error}): fetch it again, uncompressed") from error
    if not count:
        raise DatasetError(f"{path}: holds no stanza of Debian's metadata format: empty, compressed or another file")
    say(f"{name}: {count:,} stanzas in {time.monotonic() - start:.1f} s")


def plain_text(lines):
    """Description lines as text: one line a paragraph (they are divided by a line ` .`), single spaces."""
    paragraphs = [[]]
    for line in lines:
        if line.strip() == ".":
            paragraphs.append([])
        else:
            paragraphs[-1] += line.split()
    return "\n".join(" ".join(words) for words in paragraphs if words)


def expanded_tags(text):
    """Debtags in full: `a::{b,c}` is a::b and a::c."""
    tags = []
    for tag in re.findall(r"[^,{}\s]+(?:\{[^}]*\})?", text):
        stem, brace, ends = tag.rstrip("}").partition("{")
        tags += [stem + end.strip() for end in ends.split(",")] if brace else [tag]
    return tags


def relations(text):
    """A dependency field as a list of clauses, each a list of alternatives. Empty clauses are legal, and left out."""
    clauses = ",".join(clause for clause in text.split(",") if clause.strip())
    return PkgRelation.parse_relations(clauses) if clauses else []


def write_notes(files, out):
    """Writes the notes in the archive's order. Returns {package: id} and {virtual name: its providers}."""
    texts = {s["Description-md5"]: s.get("Description-en", "")
             for s in stanzas(files, "Translation-en", ["Description-md5", "Description-en"])}
    ids, providers = {}, {}
    wanted = ["Package", "Source", "Section", "Tag", "Description", "Description-md5", "Provides"]
    for package in stanzas(files, "Packages", wanted):
        name = package["Package"]
        if name in ids:  # a second version of the same package
            continue
        ids[name] = len(ids)
        title, *lines = texts.get(package.get("Description-md5"), package.get("Description", "")).split("\n")
        note = {
            "id": ids[name],
            "name": name,
            "source": package.get("Source", name).split(" ")[0],  # "source (version)"
            "title": title.strip(),
            "content": plain_text(lines),
            "category": package.get("Section", "misc").split("/")[-1],
            "hashtags": expanded_tags(package.get("Tag", "")),
        }
        out.write(json.dumps(note, ensure_ascii=False) + "\n")
        for clause in relations(package.get("Provides", "")):
            providers.setdefault(clause[0]["name"], []).append(name)
    return ids, providers


def for_architecture(relation, table, arch):
    """Whether a dependency's `[linux-any !i386]` list names the architecture."""
    limits = relation["arch"]
    if not limits:
        return True
    named = any(table.matches_architecture(arch, limit.arch) for limit in limits)
    return named == limits[0].enabled  # a list is all positive or all negative


def write_clicks(files, arch, ids, providers, out):
    """Writes the users that clicked. Returns the numbers of users and clicks."""
    table = DpkgArchTable.load_arch_table()

    # A real package stands for itself, a virtual name for its provider with the shortest name.
    @functools.cache
    def resolve(name):
        return ids.get(name, ids.get(min(providers.get(name, [""]), key=lambda p: (len(p), p))))

    newest = {}
    wanted = ["Build-Depends", "Build-Depends-Arch", "Build-Depends-Indep"]
    for source in stanzas(files, "Sources", ["Package", "Version", *wanted]):
        name, version = source["Package"], Version(source["Version"])
        if name not in newest or version > newest[name][0]:
            newest[name] = version, ",".join(source.get(field, "") for field in wanted)
    users = clicks = 0
    for name in sorted(newest):
        first = (clause[0] for clause in relations(newest[name][1]))
        notes = (resolve(relation["name"]) for relation in first if for_architecture(relation, table, arch))
        clicked = list(dict.fromkeys(note for note in notes if note is not None))
        if clicked:
            out.write(f"{name}\t{' '.join(map(str, clicked))}\n")
            users += 1
            clicks += len(clicked)
    return users, clicks


def make(files, arch, folder):
    """Writes both data files into `folder`; each appears whole or not at all, notes.jsonl first."""
    new = {name: folder / f"{name}.new" for name in ("notes.jsonl", "clicks.tsv")}
    with open(new["notes.jsonl"], "w", encoding="utf-8") as out:
        ids, providers = write_notes(files, out)
    with open(new["clicks.tsv"], "w", encoding="utf-8") as out:
        users, clicks = write_clicks(files, arch, ids, providers, out)
    if not users:
        raise DatasetError(f"{files['Sources']}: no build dependency names a package of {files['Packages']}: "
                           "the files are not of one archive")
    for name, path in new.items():
        os.replace(path, folder / name)
    say(f"{len(ids):,} notes, {users:,} users, {clicks:,} clicks in {folder}")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", metavar="DIR", type=pathlib.Path, default=pathlib.Path("data/debian"),
                        help="folder of the data set (default: data/debian)")
    parser.add_argument("--from", metavar="DIR", type=pathlib.Path, dest="source",
                        help="read Packages, Sources and Translation-en of this folder instead of fetching them")
    parser.add_argument("--arch", help="architecture whose packages are the notes (default: the machine's)")
    return parser.parse_args()


def main():
    args = arguments()
    if all((args.output / name).exists() for name in ("notes.jsonl", "clicks.tsv")):
        say(f"{args.output} is made already (remove it to make it anew)")
        return
    arch = args.arch or subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    args.output.mkdir(parents=True, exist_ok=True)
    private = args.output.resolve() / "apt"
    if args.source:
        files = {name: args.source / name for name in FILES}
    else:
        files = fetch_archive(private, arch)
    make(files, arch, args.output)
    shutil.rmtree(private, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except (DatasetError, OSError) as error:
        sys.exit(f"debian_dataset: {error}")
