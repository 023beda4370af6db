"""Fetch, verify and unpack the Medical Segmentation Decathlon's Task09_Spleen (1.6 GB).

    python download_task09.py                        -> data/Task09_Spleen
    python download_task09.py --output /scratch      -> /scratch/Task09_Spleen
    python download_task09.py --keep-archive

From the public bucket of the MONAI project; licence CC BY-SA 4.0. A broken download resumes where
it stopped when the script is run again, and an archive that was fetched by other means and lies in
OUTPUT as Task09_Spleen.tar is taken as it is. The archive's checksum is compared before anything is
unpacked; nothing in it can leave its folder; the folder appears only when it is whole.
"""

import hashlib
import http.client
import shutil
import ssl
import sys
import tarfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from common import config as base
from common.config import launch, option
from common.errors import UserError
from common.files import ROOT, lock_folder, require_space, shown

NAME = "Task09_Spleen"
CHUNK = 1 << 20
TRIES = 5  # consecutive connections that bring nothing before it gives up
PAUSE = 3  # seconds before such a connection is tried again
BROKEN = (ConnectionError, TimeoutError, ssl.SSLError)  # what ends a connection while it is read


@dataclass
class Config(base.Config):
    """What to fetch, and where to put it."""

    output: Path = option(ROOT / "data", "the folder that will hold Task09_Spleen/")
    url: str = option(
        f"https://msd-for-monai.s3-us-west-2.amazonaws.com/{NAME}.tar", "the archive's address"
    )
    md5: str = option("410d4a301da4e5b2f6f86ec3ddba524e", "the archive's MD5 checksum")
    keep_archive: bool = option(False, "keep the .tar next to the unpacked folder")


def fetch(url: str, part: Path) -> None:
    """Download `url` to `part`, from where an earlier call stopped.

    A connection that ends early is resumed. UserError if it cannot be.
    """
    idle, most, reason = 0, size_of(part), ""
    while idle < TRIES:
        try:
            if receive(url, part):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):  # retrying does not help
                raise UserError(f"{url}: {reason}.") from None
        except ValueError as error:  # the name cannot be resolved
            raise UserError(f"{url}: {error}.") from None
        except (urllib.error.URLError, http.client.HTTPException, *BROKEN) as error:
            reason = str(getattr(error, "reason", error))
        # More than ever before: a server that always starts over must not keep this going.
        idle = 0 if size_of(part) > most else idle + 1
        most = max(most, size_of(part))
        if idle:
            time.sleep(PAUSE)
    kept = (
        f"{size_of(part) / 1e6:.1f} MB are kept. Run this again to continue"
        if most
        else "Try later"
    )
    raise UserError(
        f"{url}: {reason}. {kept}, or fetch the archive by other means and put it at "
        f"{shown(part.with_suffix(''))}."
    )


def size_of(path: Path) -> int:
    """A file's length in bytes; 0 if it is not there."""
    return path.stat().st_size if path.exists() else 0


def receive(url: str, part: Path) -> bool:
    """Append what is missing of `url` to `part`; returns whether it is complete."""
    received = size_of(part)
    request = urllib.request.Request(
        url, headers={"Range": f"bytes={received}-"} if received else {}
    )
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing; the checksum will tell
            return True
        raise
    with answer:
        # A server or proxy without range support sends everything again.
        continues = (answer.headers.get("Content-Range") or "").startswith(f"bytes {received}-")
        received = received if answer.status == 206 and continues else 0
        rest = answer.headers.get("Content-Length")
        total = received + int(rest) if rest else None
        if total:
            require_space(part.parent, (total - received) / 1e6)
        bar = tqdm(
            total=total, initial=received, unit="B", unit_scale=True, desc=NAME, disable=None
        )
        with part.open("ab" if received else "wb") as file, bar:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or size_of(part) == total


def md5_of(path: Path) -> str:
    """A file's MD5 checksum."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def partial_folder(target: Path) -> Path:
    """Where the archive is unpacked before `target` is there."""
    return target.with_name(f".{target.name}.partial")


def unpack(archive: Path, target: Path) -> None:
    """Unpack the archive's folder `target.name` to `target`, which appears when it is whole.

    Python's data filter refuses members outside the target, links that lead there, and devices.
    macOS's `._` shadow files are left out: they end in .nii.gz but are not volumes.
    """
    home = partial_folder(target)
    shutil.rmtree(home, ignore_errors=True)  # of a run that was killed
    try:
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if not Path(m.name).name.startswith("._")]
            require_space(target.parent, sum(m.size for m in members) / 1e6)
            for member in tqdm(members, desc="unpacking", disable=None, leave=False):
                tar.extract(member, home, filter="data")
        if not (home / target.name / "dataset.json").is_file():
            raise UserError(f"{shown(archive)} holds no {target.name}/dataset.json.")
        (home / target.name).rename(target)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{shown(archive)} is refused, nothing is unpacked: {error}.") from None
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main(config: Config) -> None:
    """Fetch, verify, unpack; finished steps are skipped."""
    target, archive = config.output / NAME, config.output / f"{NAME}.tar"
    # A download is a .part until it is verified, so it is never mistaken for a given archive.
    part = archive.with_name(f"{archive.name}.part")
    if target.exists() or target.is_symlink():
        part.unlink(missing_ok=True)  # left by a run that was killed after the folder was complete
        shutil.rmtree(partial_folder(target), ignore_errors=True)
        raise UserError(f"{shown(target)} is there already; remove it to unpack it again.")
    if not hasattr(tarfile, "data_filter"):
        raise UserError("Safe unpacking needs Python 3.10.12, 3.11.4 or newer.")
    config.output.mkdir(parents=True, exist_ok=True)
    with lock_folder(target):
        wanted, given = config.md5.lower(), archive.exists()
        downloaded = archive if given else part
        if not given and (not part.exists() or md5_of(part) != wanted):
            fetch(config.url, part)
        if (md5 := md5_of(downloaded)) != wanted:
            size = size_of(downloaded)
            if not given:
                part.unlink()
            raise UserError(
                f"{shown(downloaded)} ({size:,} bytes) has MD5 {md5}, expected {wanted}: it is "
                f"damaged or another file. {'Remove it' if given else 'It is removed'}; run this "
                "again."
            )
        if config.keep_archive:
            downloaded = downloaded.replace(archive)
        unpack(downloaded, target)
        part.unlink(missing_ok=True)
    print(f"{shown(target)} is whole; check it with check_volumes.py, cut it with slice_nifti.py")


if __name__ == "__main__":
    launch(main, Config)
