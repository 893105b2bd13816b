"""The look-up that stands in for Snakemake's search gives the same answers and asks each job once."""

from types import SimpleNamespace

from snakemake.jobs import Job

from many_inputs import look_pipes_up


class Made(SimpleNamespace):
    __hash__ = object.__hash__


def test_the_answers_are_those_of_snakemake(monkeypatch):
    searched = Job.is_pipe_or_service_input
    monkeypatch.setattr(Job, "is_pipe_or_service_input", searched)  # put back at the end
    piped = Made(pipe_or_service_output={"pipe"})
    plain = Made(pipe_or_service_output=set())
    job = Job.__new__(Job)
    made_by = {piped: {"pipe", "file"}, plain: {"another"}}
    job.dag = SimpleNamespace(dependencies={job: made_by})
    look_pipes_up()
    paths = ("pipe", "file", "another", "source", "late")
    assert [job.is_pipe_or_service_input(path) for path in paths] == [searched(job, path) for path in paths]
    made_by[Made(pipe_or_service_output={"late"})] = {"late"}  # as after a checkpoint
    assert [job.is_pipe_or_service_input(path) for path in paths] == [searched(job, path) for path in paths]
    assert job.is_pipe_or_service_input("late")


def test_each_job_it_depends_on_is_asked_once(monkeypatch):
    monkeypatch.setattr(Job, "is_pipe_or_service_input", Job.is_pipe_or_service_input)
    asked = []

    class Counted:
        @property
        def pipe_or_service_output(self):
            asked.append(self)
            return set()

    job = Job.__new__(Job)
    job.dag = SimpleNamespace(dependencies={job: {Counted(): {f"{k}"} for k in range(50)}})
    look_pipes_up()
    assert not any(job.is_pipe_or_service_input(f"{k}") for k in range(200))
    assert len(asked) == 50
