"""Results that lie in S3: what the main process reads of them, and what may not be asked for there.

Snakemake's storage plugin moves the files of jobs. This module is for what Snakemake does not do: files that the main
process looks into while it plans, sources that jobs need though git does not know them, and credentials, which the
plugin would write into job definitions.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from lungmill.errors import ConfigError

# Access key ids begin like this (IAM user guide, "unique identifiers"); a secret key has no form of its own.
KEY_ID = re.compile(r"(?<![A-Z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])")
SECRET_SETTINGS = ("access_key", "secret_key", "token", "password")
SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)
REMEDY = "credentials come from the job's role and, here, from the environment or ~/.aws; remove it"
# What cannot be one file: each format's stand-in where files travel one by one, or None.
TRAVELLING = {"zarr": "zarr_zip", "bcolz": None}
COPIES = Path(".snakemake", "lungmill-remote")


class Remote:
    """Where the results lie. `is_used` is False where that is a folder here: then paths stay what they are."""

    def __init__(self, workflow):
        self.workflow = workflow
        storage = workflow.storage_settings
        self.is_used = bool(storage and storage.default_storage_provider)
        self.prefix = (storage.default_storage_prefix or "").rstrip("/") if self.is_used else ""

    def check(self, config):
        """Raise ConfigError, one line, where results would lie at a bucket's root or credentials would travel."""
        if self.is_used and self.prefix.startswith("s3:"):
            check_address(f"{self.prefix}/", "default-storage-prefix")
            self._guard_variables()
        for provider, tagged in (self.workflow.storage_provider_settings or {}).items():
            for setting in SECRET_SETTINGS:
                if any(_tagged_values(tagged, setting)):
                    name = f"storage-{provider}-{setting.replace('_', '-')}"
                    raise ConfigError(f"{name}: would stand in every job definition: {REMEDY}")
            for address in _tagged_values(tagged, "endpoint_url"):
                if "@" in str(address or ""):
                    raise ConfigError(f"storage-{provider}-endpoint-url: holds a name and a password: {REMEDY}")
        for key, value in _leaves(config):
            if KEY_ID.search(value):
                raise ConfigError(f"{key}: holds an AWS access key: {REMEDY}")

    def _guard_variables(self):
        """Refuse variables that would be handed to jobs as they are: they are known only when a run starts."""
        register = self.workflow.register_envvars

        def register_harmless(*variables):
            for variable in variables:
                if SECRET_VARIABLE.search(variable):
                    raise SystemExit(f"lungmill: envvars: {variable} would stand in every job definition: {REMEDY}")
            register(*variables)

        self.workflow.register_envvars = register_harmless

    def formats(self, formats, known) -> list[str]:
        """The pack formats to write: where files travel one by one, zarr is a zip store; bcolz is refused."""
        if not self.is_used:
            return list(formats)
        if "bcolz" in formats:
            raise ConfigError("pack.formats: bcolz is a folder, which does not travel to S3: choose zarr, hdf5 or npz")
        stand_in = TRAVELLING["zarr"] if TRAVELLING["zarr"] in known else "hdf5"
        return list(dict.fromkeys(stand_in if name == "zarr" else name for name in formats))

    def address(self, path: str) -> str:
        """Where a result lies, for people."""
        return f"{self.prefix}/{path}" if self.is_used else path

    def ship(self, root: Path, *files):
        """Add files to what jobs get to see: Snakemake ships what git tracks, which a patients table need not be."""
        if not self.is_used or self.workflow.remote_exec:
            return
        own = [*root.glob("rules/*"), *root.glob("schemas/*")]
        for file in [*own, *map(Path, filter(None, files))]:
            inside = os.path.relpath(file)
            if inside.startswith(".."):
                raise ConfigError(f"{file} lies outside the workflow's folder, and jobs would not see it: move it here")
            if Path(inside).is_file():
                self.workflow.configfiles.append(inside)

    def fetch(self, path) -> str:
        """A result's own path, or that of a copy that is made now where results lie elsewhere.

        Raises FileNotFoundError that names `path` as Snakemake knows it, so that it asks again once it is there.
        """
        if not self.is_used:
            return str(path)
        stored = self._object(str(path))
        known = str(stored.local_path())
        if self.workflow.remote_exec and os.path.exists(known):  # noqa: PTH110
            return known  # inside a job, maybe made by an earlier step of it and not in the storage yet
        if not stored.exists():
            raise FileNotFoundError(2, "not in the storage yet", known)
        copy = (COPIES / stored.local_suffix()).absolute()
        copy.parent.mkdir(parents=True, exist_ok=True)
        stored.set_local_path(copy.with_name(f".{copy.name}.{os.getpid()}"))
        stored.retrieve_object()
        stored.local_path().replace(copy)
        return str(copy)

    def find_log(self, log: str) -> str:
        """Where to read a log that Snakemake calls `log`; a killed job does not leave one, so it may not be there."""
        address = log.removesuffix(" (send to storage)")
        if not self.is_used or not address.startswith(f"{self.prefix}/"):
            return log
        with contextlib.suppress(FileNotFoundError):
            return self.fetch(address.removeprefix(f"{self.prefix}/"))
        return log

    def _object(self, path):
        provider = self.workflow.storage_registry.default_storage_provider
        here = f"{provider.local_prefix}/"
        if path.startswith(here):  # as Snakemake hands it out: the local copy, which need not be there
            bucket_and_key = path.removeprefix(here)
            return provider.object(f"{self.prefix.split('://')[0]}://{bucket_and_key}")
        return provider.object(f"{self.prefix}/{path}")


def check_address(address, where):
    """Raise ConfigError unless `address` is s3://bucket/something, with neither credentials nor a query in it."""
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise ConfigError(f"{where}: the address holds credentials: {REMEDY}")
    if parts.query or parts.fragment or any(mark in address for mark in "{}<>*\n"):
        raise ConfigError(f"{where}: {address!r} is no plain s3:// address: give s3://BUCKET/PREFIX")
    if not parts.netloc or not parts.path.strip("/"):
        raise ConfigError(f"{where}: {address} is a whole bucket: name a prefix in it, such as s3://BUCKET/lungmill")


def check_plugin(where):
    """Raise ConfigError where s3:// addresses are used and nothing here can read them."""
    if importlib.util.find_spec("snakemake_storage_plugin_s3") is None:
        raise ConfigError(f"{where}: s3:// needs Snakemake's plugin: pip install -r requirements-aws.txt")


def _tagged_values(tagged, setting):
    try:
        return list(tagged.get_field_settings(setting).values())
    except (AttributeError, KeyError):
        return []


def _leaves(value, key="config") -> Iterable[tuple[str, str]]:
    """(dotted key, text) of everything in nested settings."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}" if key != "config" else str(name))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part, key)
    else:
        yield key, str(value)
