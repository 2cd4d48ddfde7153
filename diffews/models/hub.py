"""Folders of models, here or on the hub. The network is asked for what a user names, and aloud."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffews.errors import InputError, refuse

# what is fetched from the hub
MODEL_FILES = ("vae/*", "text*", "tokenizer/*")  # evaluation reads these of a base
BASE_FILES = ("unet/*", "image_encoder/*", *MODEL_FILES)  # and training these

# of a weight dir, which may hold its base: no checkpoints, no logs
WEIGHT_FILES = (
    "diffews.json", "config.json", "diffusion_pytorch_model*", "unet/*", "base/*", "presence/*",
    *MODEL_FILES)

# how the hub is asked, in its own words
HUB_KEYS = ("revision", "token", "cache_dir", "local_files_only", "force_download")

HUB = "hub:"
PART = r"\w[\w.-]*"  # begins with no dot: never `..`
HUB_ID = re.compile(rf"({PART}/{PART})((?:/{PART})*)(?:@({PART}(?:/{PART})*))?", re.ASCII)
TIMEOUT = 10  # seconds that the hub has to answer


def resolve(
        name: str, patterns: Sequence[str] = MODEL_FILES, may_fetch: bool = True,
        **hub: Any) -> Path:
    """Returns a local folder as it is, and where the hub's cache keeps a hub id.

    Only `hub:owner/name[/subfolder][@revision]` is fetched, with a line that says so: a typo in a
    path is no network call. `owner/name` alone is looked for in the cache.

    Args:
        name: folder or hub id.
        patterns: the files of the hub's folder that are wanted.
        may_fetch: whether a user named it; what a file names is looked for in the cache alone.
        hub: `HUB_KEYS`; local_files_only=True looks in the cache alone, too.

    Returns:
        The folder; for what is nowhere, the path of that name.

    Raises:
        InputError: for a hub id that is none, or that the hub does not give.

    """
    path, asked = Path(name), name.startswith(HUB)
    found = HUB_ID.fullmatch(name.removeprefix(HUB))
    if asked and found is None:
        raise InputError(f"{name!r} is no hub id; write hub:owner/name[/subfolder][@revision]")
    if found is None or not asked and (path.exists() or path.parent.exists()):
        return path

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # without the network unless a user named it
    repository, subfolder = found[1], found[2].strip("/")
    if found[3] and hub.get("revision", found[3]) != found[3]:
        raise InputError(f"{name} and revision={hub['revision']!r}: name one revision")
    keys: dict[str, Any] = {
        **hub, "revision": found[3] or hub.get("revision"), "etag_timeout": TIMEOUT,
        "allow_patterns": [f"{subfolder}/{pattern}".lstrip("/") for pattern in patterns]}
    if keys.pop("local_files_only", False) or not (asked and may_fetch):
        try:
            return Path(snapshot_download(repository, local_files_only=True, **keys)) / subfolder
        except LocalEntryNotFoundError:
            return path
    print(f"diffews: fetching {repository} from the hub", file=sys.stderr)
    with refuse(f"{name} could not be fetched from the hub"):
        return Path(snapshot_download(repository, **keys)) / subfolder
