"""Where the stages of a build leave their results, and which of them are finished."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from meedge_ray.api.stages import forerunners, stage_key, stages_of
from meedge_ray.bundle.files import write_atomically
from meedge_ray.bundle.manifest import read_bundle
from meedge_ray.domain.elastic import Bundle
from meedge_ray.domain.errors import InvalidInputError, MeedgeError
from meedge_ray.train.contents import data_section, with_contents
from meedge_ray.train.locks import locked, locked_if_free
from meedge_ray.train.manifest import Manifest
from meedge_ray.train.progress import Report

_MARK = "finished"  # holds the stage's key, and is written last
_FEATURES = "features"
# All that stays in the folder of a finished stage: no checkpoints, nothing half written by a process that was killed.
_KEPT = (
    _MARK,
    _FEATURES,
    "pretrained.safetensors",
    "heads.safetensors",
    "accuracies.json",
    "exit-*[0-9]",
    "merged-*[0-9]",
    "supernet",
    "profile-*.json",
)
_KEY_DIGITS = 12  # in a folder's name


class StageFolders:
    """The folders `<output>/.build/<stage>-<first digits of its key>/`, one for each stage of one build.

    A stage's key is a hash of all that its result depends on, so what is finished stays so until that changes. The last
    stage's result is the bundle itself, which holds its key.
    """

    def __init__(self, manifest: Manifest, output: Path) -> None:
        self.root = (output / ".build").resolve()  # workers run elsewhere
        self.output = output
        self.stages = stages_of(manifest.model.spec)
        self._manifest = manifest

    def key(self, stage: str) -> str:
        """Return the stage's key, 64 hexadecimal digits.

        Raises:
            InvalidInputError: a file that the manifest names cannot be named or read.
        """
        return self._keys[stage]

    def folder(self, stage: str) -> Path:
        """Return the stage's folder, absolute; it may not be there."""
        return self.root / f"{stage}-{self.key(stage)[:_KEY_DIGITS]}"

    @property
    def features(self) -> Path:
        """Where the features are cached that branches learn from."""
        return self.folder("cultivate") / _FEATURES

    def bundle(self) -> Bundle | None:
        """Return the bundle of this very build, if it is finished."""
        try:
            bundle = read_bundle(self.output)
        except MeedgeError:
            return None
        return bundle if bundle.made_with.get("fingerprint") == self.key("assemble") else None

    def finished(self, stage: str) -> bool:
        """Return whether there is nothing left to do: the stage's result is there, or the bundle."""
        mark = self.folder(stage) / _MARK
        return (mark.exists() and mark.read_text() == self.key(stage)) or self.bundle() is not None

    def finish(self, stage: str) -> None:
        """Mark a stage whose results are all there, and keep nothing else."""
        if stage == "assemble":
            return  # the bundle is its mark
        write_atomically(self.folder(stage) / _MARK, self.key(stage).encode())
        for path in self.folder(stage).iterdir():
            if not any(path.match(kept) for kept in _KEPT):
                _remove(path)

    def check_turn(self, stage: str) -> None:
        """Refuse a stage that cannot be run now.

        Raises:
            InvalidInputError: the build has no such stage, or one that it needs is not finished; it says which.
        """
        if stage not in self.stages:
            raise InvalidInputError(
                f"this manifest's build has no stage {stage}", do=f"It has {', '.join(self.stages)}"
            )
        for each in self._forerunners(stage):
            if not self.finished(each):
                raise InvalidInputError(
                    f"{stage} needs {each}, which is not finished",
                    where=str(self.output),
                    do=f"Run {each} first, with the same manifest and output",
                )

    @contextmanager
    def alone(self, stage: str, report: Report) -> Iterator[None]:
        """Wait until no other process works on the stage or on what it needs, and keep others waiting meanwhile.

        Raises:
            UnavailableError: the file system refused.
        """

        def on_wait() -> None:
            report(stage, 0, 1, "waits for another process that builds here")

        with ExitStack() as held:
            for each in self._forerunners(stage):
                held.enter_context(locked(self._lock(each), shared=True, on_wait=on_wait))
            held.enter_context(locked(self._lock(stage), on_wait=on_wait))
            self.folder(stage).mkdir(exist_ok=True)
            yield

    def sweep(self) -> None:
        """Remove what a finished bundle needs no more: cached features, and folders of other keys.

        What other processes work on stays.
        """
        wanted = [self.folder(stage) for stage in self.stages if stage != "assemble"]
        left = [folder for folder in self.root.glob("*/") if folder not in wanted]
        left += [features for folder in wanted for features in folder.glob(f"*{_FEATURES}*")]
        for folder in left:
            stage = folder.relative_to(self.root).parts[0].partition("-")[0]
            with locked_if_free(self._lock(stage)) as free:
                if free:
                    _remove(folder)

    @cached_property
    def _keys(self) -> dict[str, str]:
        manifest = self._manifest
        spec = with_contents(manifest.model.spec, manifest.base_dir, self.root / "contents.json")
        keys = {stage: stage_key(spec, stage) for stage in self.stages}
        # What the bundle says besides.
        said = [keys["assemble"], manifest.model.metadata.name, data_section(manifest)]
        return keys | {"assemble": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}

    def _forerunners(self, stage: str) -> tuple[str, ...]:
        return forerunners(self._manifest.model.spec, stage)

    def _lock(self, stage: str) -> Path:
        return self.root / f"{stage}.lock"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
