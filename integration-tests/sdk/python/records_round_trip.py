"""Carries sample records through the public API with nothing but grpcio and stubs made from `proto/`.

Usage: records_round_trip.py ADDRESS PROTO_DIR RECORDS ROUNDS

Makes a station of 6 partitions and 3 replicas, produces every record ROUNDS times over with a counter per key on one
stream, lets two groups consume all of it on streams, and checks: every byte back, once each, in order within each key.
"""

import base64
import collections
import importlib
import json
import pathlib
import queue
import sys
import tempfile
import threading

import grpc
import grpc_tools
from grpc_tools import protoc

BATCH = 200
WINDOW = 8_000
# Longest wait for room in a stream, or for answers that make room.
PATIENCE_SECONDS = 60
STATION = "python-records"


def compile_stubs(proto_dir: pathlib.Path, out: pathlib.Path) -> None:
    """Makes the stubs that a user of another language would make."""
    files = [str(p.relative_to(proto_dir)) for p in proto_dir.glob("ptah/api/v1/*.proto")]
    files += [str(p.relative_to(proto_dir)) for p in proto_dir.glob("ptah/common/v1/*.proto")]
    builtin = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    code = protoc.main(["protoc", f"-I{proto_dir}", f"-I{builtin}", f"--python_out={out}", f"--grpc_python_out={out}", *files])
    if code != 0:
        raise SystemExit(f"protoc ended with {code}")
    sys.path.insert(0, str(out))


def numbered(records: pathlib.Path, rounds: int):
    """(key, payload) with a counter per key."""
    # Only a line feed ends a line: the records contain other separators that `splitlines` would cut at.
    lines = records.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    keys = [json.loads(line)["key"] for line in lines]
    counters = collections.Counter()
    for _ in range(rounds):
        for key, line in zip(keys, lines):
            counters[key] += 1
            yield key, f'{{"n":{counters[key]},{line[1:]}'.encode()


class Requests:
    """An outgoing stream that is fed while it is open. Nobody takes from it once its call has ended."""

    def __init__(self):
        self._queue = queue.Queue(maxsize=256)
        self.call = None

    def put(self, request):
        try:
            self._queue.put(request, timeout=PATIENCE_SECONDS)
        except queue.Full:
            ended = self.call is not None and not self.call.is_active()
            why = f"{self.call.code()}: {self.call.details()}" if ended else "the call is open"
            raise TimeoutError(f"the server takes no requests; {why}") from None

    def close(self):
        self.put(None)

    def __iter__(self):
        return iter(self._queue.get, None)


def produce(api, stub, metadata, messages) -> int:
    """Produces with a window of unanswered messages; every message must be stored."""
    requests = Requests()
    requests.put(api.ProduceStreamRequest(open=api.ProduceStreamOpen(station=STATION, producer="python")))
    answers = requests.call = stub.ProduceStream(iter(requests), metadata=metadata, timeout=300)
    assert next(answers).WhichOneof("response") == "opened"
    free = threading.Semaphore(WINDOW)

    def feed():
        for start in range(0, len(messages), BATCH):
            batch = messages[start : start + BATCH]
            for _ in batch:
                if not free.acquire(timeout=PATIENCE_SECONDS):
                    raise TimeoutError(f"no answer for {PATIENCE_SECONDS} s")
            new = [api.NewMessage(key=key.encode(), payload=payload) for key, payload in batch]
            requests.put(api.ProduceStreamRequest(batch=api.ProduceStreamBatch(messages=new)))
        requests.close()

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    stored = set()
    for answer in answers:
        for result in answer.results.results:
            assert result.WhichOneof("outcome") == "stored", result
            for number in range(result.first, result.first + result.count):
                assert number not in stored, f"message {number} was answered twice"
                stored.add(number)
                free.release()
    feeder.join()
    assert len(stored) == len(messages), f"{len(stored)} of {len(messages)} messages were answered"
    return len(stored)


def acks(api, messages):
    """One acknowledgement for each partition in a batch; its sequences rise, with gaps only where others read."""
    ranges = collections.defaultdict(list)
    for message in messages:
        runs = ranges[message.partition]
        if runs and runs[-1][1] + 1 == message.sequence:
            runs[-1][1] = message.sequence
        else:
            runs.append([message.sequence, message.sequence])
    for partition, runs in ranges.items():
        yield api.ConsumeAck(partition=partition, ranges=[api.SequenceRange(first=f, last=l) for f, l in runs])


def consume(api, stub, metadata, group: str, count: int):
    """Receives `count` messages and acknowledges each; afterwards nothing more may be there."""
    requests = Requests()
    credit = api.ConsumeCredit(messages=2_000, bytes=16 << 20)
    requests.put(api.ConsumeRequest(open=api.ConsumeOpen(station=STATION, group=group, credit=credit)))
    received = []
    idle = False
    requests.call = stub.Consume(iter(requests), metadata=metadata, timeout=300)
    for answer in requests.call:
        kind = answer.WhichOneof("response")
        if kind == "batch":
            received.extend(answer.batch.messages)
            for ack in acks(api, answer.batch.messages):
                requests.put(api.ConsumeRequest(ack=ack))
            size = sum(len(m.payload) for m in answer.batch.messages)
            more = api.ConsumeCredit(messages=len(answer.batch.messages), bytes=size)
            requests.put(api.ConsumeRequest(credit=more))
        idle = kind == "idle"
        if idle and len(received) >= count:
            break
    requests.call.cancel()
    return received


def check(received, messages) -> None:
    """Every byte, once, in order within each key."""
    expected = collections.defaultdict(list)
    for key, payload in messages:
        expected[key].append(payload)
    got = collections.defaultdict(list)
    places = set()
    for message in received:
        place = (message.partition, message.sequence)
        assert place not in places, f"{place} came twice"
        assert message.delivery_count == 1, f"{place} was handed out {message.delivery_count} times"
        places.add(place)
        got[message.key.decode()].append(message.payload)
    assert got == expected, "what came back differs from what was produced"


def main() -> None:
    address, proto_dir, records, rounds = sys.argv[1:]
    with tempfile.TemporaryDirectory() as out:
        compile_stubs(pathlib.Path(proto_dir), pathlib.Path(out))
        station_pb = importlib.import_module("ptah.api.v1.station_pb2")
        message_pb = importlib.import_module("ptah.api.v1.message_pb2")
        stations = importlib.import_module("ptah.api.v1.station_pb2_grpc")
        service = importlib.import_module("ptah.api.v1.message_pb2_grpc")
    credentials = base64.b64encode(b"root:memphis").decode()
    metadata = (("authorization", f"Basic {credentials}"),)
    messages = list(numbered(pathlib.Path(records), int(rounds)))
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", 70 << 20)]) as channel:
        config = station_pb.StationConfig(partitions=6, replicas=3)
        make = station_pb.CreateStationRequest(name=STATION, config=config)
        stations.StationServiceStub(channel).CreateStation(make, metadata=metadata, timeout=60)
        stub = service.MessageServiceStub(channel)
        stored = produce(message_pb, stub, metadata, messages)
        for group in ("first", "second"):
            check(consume(message_pb, stub, metadata, group, len(messages)), messages)
    print(f"{stored} messages stored, received twice, equal")


if __name__ == "__main__":
    main()
