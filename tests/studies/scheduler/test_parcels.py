"""Files that travel with a job, and the paths of a job that runs elsewhere."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from policy_distill.config import CollectConfig, DistillConfig, EnsembleConfig
from policy_distill.evaluation.machines import this_machine
from policy_distill.studies.scheduler.jobs import StudyJob, files_of, perform
from policy_distill.studies.scheduler.on_ray import Order, _replace_run, perform_moved
from policy_distill.studies.scheduler.parcels import Parcel, relative, with_paths
from policy_distill.teachers.files.folder import agents_dir
from tests.integration.small_jobs import small_config


def test_files_and_links_arrive_where_they_were(tmp_path):
    """A cache of the Hub holds links to files that are named by their hash."""
    blob, link = tmp_path / "cache" / "blobs" / "ab12", tmp_path / "cache" / "agent" / "One.zip"
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    blob.write_bytes(b"weights")
    link.symlink_to(blob)
    (link.parent / "config.yml").write_text("normalize: false")
    Parcel.of([link, link.parent / "config.yml"]).unpack(tmp_path / "there")
    there = tmp_path / "there" / relative(link)
    assert there.read_bytes() == b"weights"
    assert there.resolve() == tmp_path / "there" / relative(blob)
    assert there.with_name("config.yml").read_text() == "normalize: false"


def test_every_path_of_a_job_is_changed_and_nothing_else(tmp_path):
    config = DistillConfig(
        teacher=str(tmp_path),
        output="runs/one",
        normalization="none",
        extractor="nets/mine.py:Net",
        ensemble=EnsembleConfig((str(tmp_path), "ppo/CartPole-v1", "no such agent")),
        collect=CollectConfig(extra_states="worst.npz"),
    )
    changed = with_paths(config, lambda path: f"<{path}>")
    shipped = agents_dir() / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip"
    assert changed == dataclasses.replace(
        config,
        teacher=f"<{tmp_path}>",
        output="<runs/one>",
        extractor="<nets/mine.py>:Net",
        ensemble=EnsembleConfig((f"<{tmp_path}>", f"<{shipped}>", "no such agent")),
        collect=CollectConfig(extra_states="<worst.npz>"),
    )
    assert with_paths(changed, str) == changed


def test_a_job_that_was_moved_leaves_the_same_files_in_the_order_of_their_writing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(small_config(str(agents_dir() / "sac" / "Pendulum-v1_1")), output="runs/one")
    job = StudyJob.of("one", config)
    order = Order(dataclasses.replace(job, config=dataclasses.replace(config, output=str(tmp_path / "runs" / "one"))), this_machine(),
                  "/nowhere", {}, str(tmp_path))  # fmt: skip
    Parcel.of(files_of(config)).unpack(tmp_path / "there")
    outcome, parcel = perform_moved(order, str(tmp_path / "there"))
    assert outcome.status == "done", outcome.reason
    assert list(parcel.contents)[-1] == "job.json"
    parcel.unpack(tmp_path / "back")
    back = dataclasses.replace(job, config=dataclasses.replace(config, output=str(tmp_path / "back")))
    assert perform(job).status == "done"
    mine, theirs = job.completed(), back.completed()
    assert mine is not None
    assert theirs is not None
    assert mine["returns"] == theirs["returns"]
    for name in ("config.yaml", "student/student.json"):
        assert (tmp_path / "back" / name).read_text() == Path("runs/one", name).read_text().replace(
            str(agents_dir()), relative(agents_dir(), tmp_path)
        )


def test_a_machine_that_does_not_see_the_same_files_is_not_in_place(tmp_path):
    job = StudyJob.of("one", DistillConfig(output=str(tmp_path / "run")))
    file = tmp_path / "agent.zip"
    file.write_bytes(b"weights")
    hashes = {file: "9" * 64}
    order = Order(job, this_machine(), str(file), {}, str(tmp_path))
    assert order.in_place
    assert not dataclasses.replace(order, hashes=hashes).in_place
    assert not dataclasses.replace(order, token=str(tmp_path / "none")).in_place


def test_a_run_that_comes_back_replaces_what_lies_there(tmp_path):
    job, far = StudyJob.of("one", DistillConfig(output=str(tmp_path / "run"))), tmp_path / "far"
    for path in (job.folder / "error.txt", job.folder / "checkpoint" / "state.safetensors", job.folder / "notes.txt", far / "result.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    parcel = Parcel.of([far / "result.json"], far)
    _replace_run(job, parcel, done=False)
    assert sorted(os.listdir(job.folder)) == ["checkpoint", "notes.txt", "result.json"]
    _replace_run(job, parcel, done=True)
    assert sorted(os.listdir(job.folder)) == ["notes.txt", "result.json"]
