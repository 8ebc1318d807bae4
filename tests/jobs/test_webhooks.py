"""Webhooks: queued with the end of a batch, signed as the SDK expects, tried again, and sent to nobody inside."""

import ipaddress
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import openai
import orjson
import pytest
from sqlalchemy import Engine, text

from jobs import batches, database, export, webhooks
from jobs.batches import Batch
from jobs.errors import BadRequest
from jobs.keys import DEFAULT_PROJECT
from jobs.settings import Settings
from jobs.states import BatchState
from jobs.webhooks import Webhook, addresses, outbox, sender, sending
from jobs.webhooks.addresses import Refused
from jobs.webhooks.outbox import Delivery
from jobs.webhooks.sending import NotDelivered
from tests.jobs import making

SETTINGS = Settings(webhooks_to_private_addresses=True, sweep_seconds=0.05)


class Endpoint(ThreadingHTTPServer):
    """A receiver on loopback: answers with the next of `statuses`, then 200, and keeps what came."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.came = threading.Condition()
        self.drip = threading.Event()  # set: the answer never ends
        self.over = threading.Event()
        super().__init__(("127.0.0.1", 0), Receiver)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?a=b"

    def wait_for(self, count: int) -> None:
        with self.came:
            assert self.came.wait_for(lambda: len(self.heard) >= count, timeout=20), self.heard


class Receiver(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if self.server.drip.is_set():
            self.server.over.wait(20)
            return
        self.send_response(status)
        self.send_header("location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()
        with self.server.came:
            self.server.heard.append((dict(self.headers), body))
            self.server.came.notify_all()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def add(ledger: Engine, url: str, *, project_id: str = DEFAULT_PROJECT, **more: object) -> Webhook:
    return database.run(ledger, lambda c: webhooks.add(c, project_id, url, allows_private=True, **more))  # type: ignore[arg-type]


def failed_batch(ledger: Engine) -> Batch:
    return making.ingest(ledger, [b"{"])


def claim(ledger: Engine) -> Delivery | None:
    return database.run(ledger, lambda c: outbox.claim(c, busy=[]))


def settle(ledger: Engine, delivery: Delivery, failure: str | None = None) -> None:
    database.run(ledger, lambda c: outbox.settle(c, delivery, failure=failure, wait_seconds=0))


@pytest.mark.parametrize("state", [BatchState.COMPLETED, BatchState.CANCELLED, BatchState.EXPIRED])
def test_a_batch_that_ends_is_announced_in_the_transaction_that_ends_it(ledger: Engine, state: BatchState) -> None:
    add(ledger, "http://127.0.0.1:9/")
    batch = making.ingest(ledger, [making.line("a")])
    owner = making.worker(ledger)
    with ledger.begin() as connection:
        connection.execute(text("UPDATE chunk SET state = 'void'"))
        connection.execute(text("UPDATE batch SET state = 'finalizing', outcome = :outcome"), {"outcome": state.value})
    epoch = database.run(
        ledger, lambda c: batches.take(c, batch.id, owner=owner, states=["finalizing"], silent_seconds=60)
    )
    assert epoch is not None
    with ledger.connect() as connection:
        assert batches.finish(connection, batch.id, epoch, output_file_id=None, error_file_id=None) is state
        connection.rollback()
    assert claim(ledger) is None, "what was rolled back was never announced"
    database.run(ledger, lambda c: batches.finish(c, batch.id, epoch, output_file_id=None, error_file_id=None))
    delivery = claim(ledger)
    assert delivery is not None
    assert (delivery.event, delivery.batch_public_id) == (f"batch.{state.value}", batch.public_id)


def test_only_the_projects_own_endpoints_that_asked_for_the_event_are_told(ledger: Engine) -> None:
    with ledger.begin() as connection:
        connection.execute(text("INSERT INTO project (id) VALUES ('other')"))
    add(ledger, "https://a.example/", project_id="other")
    add(ledger, "https://b.example/", events=["batch.completed"])
    wanted = add(ledger, "https://c.example/", events=["batch.failed"])
    failed_batch(ledger)
    delivery = claim(ledger)
    assert delivery is not None
    assert delivery.webhook_id == wanted.id
    assert claim(ledger) is None


def test_a_message_arrives_signed_as_the_sdk_expects_and_once(ledger: Engine, endpoint: Endpoint) -> None:
    webhook = add(ledger, endpoint.url)
    batch = failed_batch(ledger)
    sending_ = webhooks.Sender(ledger, SETTINGS)
    sending_.start()
    endpoint.wait_for(1)
    sending_.stop()
    headers, body = endpoint.heard[0]
    client = openai.OpenAI(api_key="none", webhook_secret=webhook.secret)
    event = client.webhooks.unwrap(body, {name.lower(): value for name, value in headers.items()})
    assert event.type == "batch.failed"
    assert event.data.id == batch.public_id
    assert event.id == headers["webhook-id"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(body + b" ", {name.lower(): value for name, value in headers.items()})
    assert claim(ledger) is None
    assert making.scalar(ledger, "SELECT delivered_at IS NOT NULL FROM webhook_delivery")


def test_a_refused_message_is_tried_again_with_the_same_id_and_body(
    ledger: Engine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "WAIT_SECONDS_MIN", 0.01)
    endpoint.statuses = [500, 302, 404]
    add(ledger, endpoint.url)
    failed_batch(ledger)
    sending_ = webhooks.Sender(ledger, SETTINGS)
    sending_.start()
    endpoint.wait_for(4)
    sending_.stop()
    assert len(endpoint.heard) == 4, "a redirect is a refusal, not a second request"
    assert len({(headers["webhook-id"], body) for headers, body in endpoint.heard}) == 1


def test_a_slow_endpoint_does_not_hold_up_another(ledger: Engine, endpoint: Endpoint) -> None:
    slow, quick, held = add(ledger, "https://slow.example/"), add(ledger, "https://quick.example/"), threading.Event()
    told: list[str] = []
    came = threading.Event()

    def post(delivery: Delivery, _headers: dict[str, str], _body: bytes) -> None:
        if delivery.webhook_id == slow.id:
            assert held.wait(20)
            return
        told.append(delivery.event_id)
        if len(told) == 6:
            came.set()

    for _ in range(6):
        failed_batch(ledger)
    sending_ = webhooks.Sender(ledger, SETTINGS, post)
    sending_.start()
    assert came.wait(20), told
    held.set()
    sending_.stop()
    assert quick.id != slow.id
    assert len(set(told)) == 6


def test_a_message_of_a_process_that_died_is_sent_by_another_after_its_lease(ledger: Engine) -> None:
    add(ledger, "https://a.example/")
    failed_batch(ledger)
    first = claim(ledger)
    assert first is not None
    assert claim(ledger) is None
    database.run(ledger, lambda c: c.execute(text("UPDATE webhook_delivery SET next_at = now()")))
    second = claim(ledger)
    assert second is not None
    assert (second.event_id, second.body(), second.tries) == (first.event_id, first.body(), 2)
    settle(ledger, first, failure="late")
    assert making.scalar(ledger, "SELECT failure IS NULL FROM webhook_delivery"), "the first no longer has a say"
    settle(ledger, second)
    assert making.scalar(ledger, "SELECT next_at IS NULL AND delivered_at IS NOT NULL FROM webhook_delivery")


def test_after_three_days_it_is_given_up(ledger: Engine) -> None:
    add(ledger, "https://a.example/")
    failed_batch(ledger)
    delivery = claim(ledger)
    assert delivery is not None
    database.run(
        ledger, lambda c: c.execute(text("UPDATE webhook_delivery SET created_at = now() - interval '73 hours'"))
    )
    settle(ledger, delivery, failure="It answered with status 500.")
    assert making.scalar(ledger, "SELECT next_at IS NULL AND delivered_at IS NULL FROM webhook_delivery")
    assert claim(ledger) is None


def test_waits_double_up_to_an_hour_and_never_agree() -> None:
    waits = [sender.wait_seconds(tries) for tries in range(1, 60)]
    assert all(2.5 <= wait <= 5_400 for wait in waits)
    assert 2.5 <= waits[0] <= 7.5
    assert min(waits[12:]) >= 1_800
    assert len(set(waits)) == len(waits)


def test_a_removed_webhook_is_told_nothing_more(ledger: Engine) -> None:
    webhook = add(ledger, "https://a.example/")
    failed_batch(ledger)
    assert database.run(ledger, lambda c: webhooks.remove(c, webhook.id))
    assert not database.run(ledger, lambda c: webhooks.remove(c, webhook.id))
    assert claim(ledger) is None
    assert database.run(ledger, webhooks.find) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/",
        "ftp://a.example/",
        "https://",
        "https://user@a.example/",
        "https://a.example/#part",
        "https://a.example\\@b.example/",
        "https://a.example/ ",
        "https://a.example/\n",
        "https://bücher.example/",
        "https://a.example:99999/",
        "https://[::1/",
        "https://" + "a" * 3_000,
        "",
    ],
)
def test_a_url_that_could_be_read_in_two_ways_is_refused(ledger: Engine, url: str) -> None:
    with ledger.begin() as connection, pytest.raises(BadRequest):
        webhooks.add(connection, DEFAULT_PROJECT, url, allows_private=False)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "2001:0:7f00:1:0:0:80ff:fffe",
    ],
)
def test_an_address_inside_is_not_public(address: str) -> None:
    assert not addresses.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::808:808"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert addresses.is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("resolved", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:7f00:1"]])
def test_a_name_that_stands_for_any_private_address_is_not_connected_to(resolved: list[str]) -> None:
    with pytest.raises(NotDelivered, match="not public"):
        sending.post("https://a.example/", {}, b"", allows_private=False, resolve=lambda *_: resolved)


def test_who_really_answers_is_looked_at_again(endpoint: Endpoint) -> None:
    """As if the check had been fooled: the connection itself still tells."""
    target = addresses.parse(endpoint.url, allows_private=True)
    connection = sending.Pinned(target, "127.0.0.1", allows_private=False, context=None)
    with pytest.raises(Refused, match="not public"):
        connection.connect()
    connection.close()
    assert endpoint.heard == []


def test_the_address_that_was_checked_is_the_one_connected_to(endpoint: Endpoint) -> None:
    """A name is resolved once for each try, so it cannot stand for something else when it is connected to."""
    asked: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["192.0.2.1"]

    url = endpoint.url.replace("127.0.0.1", "no-such-host.invalid")
    sending.post(url, {"a": "b"}, b"{}", allows_private=True, resolve=resolve)
    assert asked == ["no-such-host.invalid"]
    endpoint.wait_for(1)
    headers, body = endpoint.heard[0]
    assert (headers["Host"], body) == (f"no-such-host.invalid:{endpoint.server_port}", b"{}")


def test_an_endpoint_that_never_answers_is_cut_off(endpoint: Endpoint) -> None:
    endpoint.drip.set()
    with pytest.raises(NotDelivered):
        sending.post(endpoint.url, {}, b"{}", allows_private=True, total_seconds=0.2)


def test_a_host_without_an_address_is_not_delivered_to() -> None:
    with pytest.raises(NotDelivered, match="no address"):
        sending.post("https://no-such-host.invalid/", {}, b"", allows_private=False)


def test_a_signature_is_of_id_time_and_body() -> None:
    secret = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    signature = webhooks.sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", "the example of Standard Webhooks"


def test_the_body_says_which_batch_ended_and_how(ledger: Engine) -> None:
    add(ledger, "https://a.example/")
    batch = failed_batch(ledger)
    delivery = claim(ledger)
    assert delivery is not None
    assert orjson.loads(delivery.body()) == {
        "id": delivery.event_id,
        "object": "event",
        "created_at": int(delivery.created_at.timestamp()),
        "type": "batch.failed",
        "data": {"id": batch.public_id},
    }
    assert delivery.event_id.startswith("evt_")


def test_a_direct_completion_is_nobodys_event(ledger: Engine) -> None:
    add(ledger, "https://a.example/")
    with ledger.begin() as connection:
        connection.execute(
            text("""
                INSERT INTO batch (public_id, project_id, is_direct, endpoint, completion_window, state, outcome,
                                   expires_at)
                VALUES ('batch_direct', 'default', true, '/', '15m', 'finalizing', 'expired', now())
            """)
        )
        batch_id = connection.execute(text("SELECT id FROM batch")).scalar_one()
    state = export.finalize(ledger, batch_id, owner=uuid4(), settings=making.SETTINGS)
    assert state is BatchState.EXPIRED
    assert claim(ledger) is None
