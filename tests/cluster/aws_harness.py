"""S3 and AWS Batch on loopback: moto answers, and what is submitted really runs, in a clean folder.

    python tests/cluster/aws_harness.py STATE            serve until stdin closes; STATE/ready.json says where

moto keeps the interfaces, their validation and a job's life (SUBMITTED to SUCCEEDED or FAILED, timeouts, termination).
Here its `docker run` starts the submitted command as a process instead. A container knows what its image holds and what
its job definition says: nothing of the submitting environment. Every container leaves STATE/containers/{name}.json with
what was asked for, its output and its end.

Faults are files in STATE/faults, read at every step, one JSON object each, with `times` left to happen:

    {"kind": "kill", "match": "segment:patient=demo-1", "after": "Snakefile", "times": 1}
        kill the container whose command contains `match` as soon as its folder holds `after`
    {"kind": "slow_down", "method": "GET", "match": "volumes/", "times": 3}     answer 503 SlowDown
    {"kind": "cut", "method": "GET", "match": ".npy", "times": 1}               end the body half way
"""

import datetime
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

IMAGE_TAG = "lungmill:test"
REGION = "us-east-1"
# What jobs get from their role on AWS. Fixed words that the tests look for everywhere else.
ROLE_KEY, ROLE_SECRET = "ASIAJOBROLEJOBROLE00", "secret-of-the-job-role"


class Faults:
    """The faults that are waiting in a folder; `take` hands each out as often as it says."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()

    def take(self, kind, text, method=None):
        with self.lock:
            for path in sorted(self.folder.glob("*.json")):
                fault = json.loads(path.read_text())
                wanted = fault["kind"] == kind and fault["times"] > 0 and fault["match"] in text
                if wanted and fault.get("method", method) == method:
                    path.write_text(json.dumps(fault | {"times": fault["times"] - 1, "met": fault.get("met", 0) + 1}))
                    return fault
        return None


class FaultyS3:
    """moto's application, with 503 and bodies that end early where a fault says so."""

    def __init__(self, application, faults):
        self.application, self.faults = application, faults

    def __call__(self, environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if self.faults.take("slow_down", path, method):
            body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            start_response("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [body]
        if not self.faults.take("cut", path, method):
            return self.application(environ, start_response)
        # The length stays what it was, so that whoever downloads can tell.
        whole = b"".join(self.application(environ, start_response))
        return [whole[: len(whole) // 2]]


class Container:
    """The methods of docker's Container that moto calls, on a process in a folder of its own."""

    numbers = itertools.count(1)
    state: Path
    faults: Faults
    slots: threading.Semaphore
    endpoint: str
    attrs = {"NetworkSettings": {"Networks": {}}}  # noqa: RUF012 (docker's name)

    def __init__(self, command, environment, name, image, **_):
        self.name = f"{next(self.numbers):03d}-{name}"
        folder = self.state / "containers"
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self.output = folder / f"{self.name}.log"
        self.record = {"name": name, "image": image, "command": command, "environment": environment}
        self.command = command
        self.environment = {
            "PATH": f"{self.state / 'image-bin'}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            # On AWS the container finds these by itself, at an address that only it can reach.
            "AWS_ACCESS_KEY_ID": ROLE_KEY,
            "AWS_SECRET_ACCESS_KEY": ROLE_SECRET,
            "AWS_DEFAULT_REGION": REGION,
            **environment,
        }
        self.process, self.code, self.was_killed = None, None, False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with self.slots, self.output.open("wb") as output:
            started = time.time()
            if not self.was_killed:
                self.process = subprocess.Popen(
                    self.command, cwd=self.folder, env=self.environment, stdout=output, stderr=output,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
                threading.Thread(target=self._kill_where_a_fault_says_so, daemon=True).start()
                self.process.wait()
            code = self.process.returncode if self.process else -signal.SIGKILL
            self.record |= {"started": started, "seconds": time.time() - started, "code": code}
        (self.state / "containers" / f"{self.name}.json").write_text(json.dumps(self.record, indent=1))
        code = self.record["code"]
        self.code = code if code >= 0 else 128 - code  # 137: killed

    def _kill_where_a_fault_says_so(self):
        fault = self.faults.take("kill", " ".join(self.command))
        while fault and self.process.poll() is None:
            if any(self.folder.glob(fault["after"])):
                self.kill()
            time.sleep(0.02)

    @property
    def status(self):
        return "running" if self.code is None else "exited"

    def reload(self):
        pass

    def wait(self):
        while self.code is None:
            time.sleep(0.05)
        return {"StatusCode": self.code}

    def kill(self):
        self.was_killed = True
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def logs(self, stdout, stderr, **_):
        if not stdout or not self.output.exists():
            return b""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
        return b"".join(now + b" " + line for line in self.output.open("rb"))

    def remove(self):
        pass


class Docker:
    """docker's client as far as moto uses it."""

    class containers:
        @staticmethod
        def run(detach, **settings):
            return Container(**{key: settings[key] for key in ("command", "environment", "name", "image")})


def serve(state: Path, slots: int, image_bin: dict):
    """Serve until stdin closes, which it does however the test process ends."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from moto.utilities.docker_utilities import DockerModel
    from werkzeug.serving import WSGIRequestHandler, make_server

    state = state.resolve()
    (state / "image-bin").mkdir(parents=True)
    for name, content in image_bin.items():
        (state / "image-bin" / name).write_text(content)
        (state / "image-bin" / name).chmod(0o755)
    faults = Faults(state / "faults")
    DockerModel.docker_client = property(lambda self: Docker)
    WSGIRequestHandler.log = lambda *given: None
    application = FaultyS3(DomainDispatcherApplication(create_backend_app), faults)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    Container.state, Container.faults, Container.endpoint = state, faults, endpoint
    Container.slots = threading.Semaphore(slots)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    keys = {"region_name": REGION, "aws_access_key_id": "x", "aws_secret_access_key": "x", "endpoint_url": endpoint}
    role = boto3.client("iam", **keys).create_role(RoleName="jobs", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    batch = boto3.client("batch", **keys)
    machines = batch.create_compute_environment(
        computeEnvironmentName="machines", type="UNMANAGED", state="ENABLED", serviceRole=role
    )
    queue = batch.create_job_queue(
        jobQueueName="queue", state="ENABLED", priority=1,
        computeEnvironmentOrder=[{"order": 1, "computeEnvironment": machines["computeEnvironmentArn"]}],
    )  # fmt: skip
    ready = {"endpoint": endpoint, "queue": queue["jobQueueArn"], "role": role}
    (state / "ready.partial").write_text(json.dumps(ready))
    (state / "ready.partial").rename(state / "ready.json")
    sys.stdin.read()


class Aws:
    """A running server, from the side of a test: the bucket, the containers that ran, and faults to come."""

    def __init__(self, state: Path, image_bin: dict, slots=2):
        self.state = Path(state)
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(state), str(slots), json.dumps(image_bin)], stdin=subprocess.PIPE
        )
        end = time.monotonic() + 60
        while not (self.state / "ready.json").exists():
            assert self.process.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.05)
        self.__dict__ |= json.loads((self.state / "ready.json").read_text())
        self.number = itertools.count()

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def client(self, service):
        import boto3

        return boto3.client(
            service, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x", endpoint_url=self.endpoint
        )

    def environment(self, home, key="AKIAUSERUSERUSERUSER", secret="secret-of-the-user"):
        """Environment of a submitting process: nothing of the tests' own but where programs are."""
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "AWS_ENDPOINT_URL": self.endpoint,
            "SNAKEMAKE_STORAGE_S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
        }

    def add_fault(self, **fault):
        """Plan a fault; returns a function that says how often it has happened."""
        path = self.state / "faults" / f"{next(self.number):03d}.json"
        path.write_text(json.dumps({"times": 1} | fault))
        return lambda: json.loads(path.read_text()).get("met", 0)

    def clear_faults(self):
        for path in (self.state / "faults").glob("*.json"):
            path.unlink()

    def containers(self, after=0):
        """What was asked for and what became of it, of the containers that ended, by number."""
        paths = sorted((self.state / "containers").glob("*.json"))
        return [json.loads(path.read_text()) | {"output": path.with_suffix(".log")} for path in paths[after:]]

    def keys(self, bucket):
        pages = self.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {item["Key"]: item["LastModified"] for page in pages for item in page.get("Contents", [])}

    def download(self, bucket, prefix, folder):
        """Everything below a prefix as files in a folder."""
        s3 = self.client("s3")
        for key in self.keys(bucket):
            if key.startswith(f"{prefix}/"):
                path = Path(folder) / key.removeprefix(f"{prefix}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, key, str(path))
        return Path(folder)

    def upload(self, folder, bucket, prefix):
        s3 = self.client("s3")
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                s3.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
