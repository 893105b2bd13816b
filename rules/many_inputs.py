"""Keeps Snakemake from comparing every input of a job with every job that it depends on.

It asks of each input whether one of those jobs made it as a pipe or a service. The tables and the report of 16,000
patients have 100,000 inputs of 80,000 jobs: ten minutes each time. Here the answer is looked up.
"""

from snakemake.jobs import Job


def look_pipes_up():
    """Let `Job.is_pipe_or_service_input` take the same time however many jobs a job depends on."""

    def is_pipe_or_service_input(job, path):
        made_by = job.dag.dependencies[job]
        known = job.__dict__.get("_pipes_and_services")
        if known is None or known[0] != len(made_by):  # checkpoints add dependencies
            known = len(made_by), {output for other in made_by for output in other.pipe_or_service_output}
            job._pipes_and_services = known
        return path in known[1]

    Job.is_pipe_or_service_input = is_pipe_or_service_input
