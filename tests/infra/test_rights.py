"""The roles of infra/storage: a run can do what it needs, and no more."""

import fnmatch
import json
import re
import shlex
import uuid

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.writing import write_samples
from pipeline.run.ledger import Ledger
from pipeline.run.manifest import write_manifest
from pipeline.run.verify import audit
from pipeline.storage.object_store import Store
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples
from tests.infra.test_infra import INFRA, documents, ray_objects
from tests.support.processes import servers


def test_a_run_on_s3_can_do_what_it_needs_and_no_more():
    role = json.loads((INFRA / "storage" / "s3-role.json").read_text())
    bucket = json.loads((INFRA / "storage" / "s3-bucket.json").read_text())

    def may(action, key):
        return any(
            action in _list(statement["Action"])
            and any(
                fnmatch.fnmatchcase(f"arn:aws:s3:::example-bucket/{key}", one) for one in _list(statement["Resource"])
            )
            for statement in role["Statement"]
        )

    arguments = shlex.split(ray_objects()[0]["spec"]["entrypoint"])
    for read in (word.removeprefix("s3://example-bucket/") for word in arguments if word.startswith("s3://")):
        assert may("s3:GetObject", read if read.endswith(".txt") else f"{read}/x")
    assert may("s3:GetObject", "train-00001.tar")
    assert may("s3:PutObject", "labels/first/labels/a.000000.parquet")
    assert not may("s3:PutObject", "train-00001.tar")
    assert not may("s3:PutObject", "models/sd15/unet/config.json")
    assert not re.search('Delete|\\*"', json.dumps([statement["Action"] for statement in role["Statement"]]))
    denied = {statement["Sid"]: statement for statement in bucket["Statement"]}
    assert {statement["Effect"] for statement in denied.values()} == {"Deny"}
    assert denied["LabelsAreCreatedAndNeverReplaced"]["Condition"]["Null"] == {"s3:if-none-match": "true"}


def test_an_operator_may_delete_below_the_outputs_of_runs_alone():
    role = json.loads((INFRA / "storage" / "s3-operator.json").read_text())
    bucket = json.loads((INFRA / "storage" / "s3-bucket.json").read_text())
    deleting = [each for each in role["Statement"] if "s3:DeleteObject" in _list(each["Action"])]
    assert [_list(each["Resource"]) for each in deleting] == [["arn:aws:s3:::example-bucket/labels/*"]]
    assert all(each["Principal"]["AWS"].endswith(":role/diffseg") for each in bucket["Statement"]), "workers alone"


def _list(value):
    return value if isinstance(value, list) else [value]


def test_no_role_may_delete():
    [google] = documents(INFRA / "storage" / "gcs-role.yaml")
    assert not [one for one in google["includedPermissions"] if one.endswith((".delete", ".update", ".*"))]
    [binding] = documents(INFRA / "storage" / "gcs-binding.yaml")
    for one in binding["bindings"]:
        assert one["role"].endswith("/diffsegWorker") or "/status/" in one["condition"]["expression"]
    azure = json.loads((INFRA / "storage" / "azure-role.json").read_text())
    assert not [one for one in azure["DataActions"] if "delete" in one or one.endswith("*")]


def test_the_operators_roles_delete_on_other_clouds_too():
    [google] = documents(INFRA / "storage" / "gcs-operator.yaml")
    assert "storage.objects.delete" in google["includedPermissions"]
    azure = json.loads((INFRA / "storage" / "azure-operator.json").read_text())
    assert [one for one in azure["DataActions"] if one.endswith("/delete")]


def test_a_whole_run_deletes_nothing_and_writes_only_below_its_output(s3):
    place = f"s3://{servers.BUCKET}/{uuid.uuid4().hex[:8]}"
    Store(place).put_new("train-0.tar", write_samples(samples(4)))
    s3.requests.clear()
    ledger = Ledger.start(f"{place}/run", a_run(), pin([f"{place}/train-0.tar"]))
    list(Worker(ledger, FakeSegmenter()).run(ledger.missing()))
    write_manifest(ledger, list(audit(ledger)))
    methods = {method for method, _ in s3.requests}
    assert methods == {"GET", "HEAD", "PUT"}
    written = [path for method, path in s3.requests if method == "PUT"]
    assert any("/run/_SUCCESS" in path for path in written)
    assert [path for path in written if "/run/" not in path] == []
