"""HTTP/2 conformance of a proxy, by an implementation that is not ours (python-h2, hyperframe). RFC 9113 unless said.

conformance.py PORT: the replica answers each request with what it was asked, /big with a megabyte or more, a body with its length.
Prints one line for each check and ends with "all N checks passed", or raises.
"""

import socket
import sys

import h2.config
import h2.connection
import h2.events
import h2.settings
import hyperframe.frame as frames

PORT = int(sys.argv[1])
REQUEST = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]


class Client:
    """A connection that reads until something has happened; `lenient` sends what h2 itself would refuse."""

    def __init__(self, lenient=True):
        config = h2.config.H2Configuration(
            client_side=True, validate_outbound_headers=not lenient, normalize_outbound_headers=not lenient,
            header_encoding="utf-8")
        self.http = h2.connection.H2Connection(config=config)
        self.socket = socket.create_connection(("127.0.0.1", PORT), timeout=10)
        self.events = []
        self.bodies = {}
        self.http.initiate_connection()
        self.flush()

    def flush(self):
        try:
            self.socket.sendall(self.http.data_to_send())
        except (ConnectionResetError, BrokenPipeError):
            # Closed by the other side; what it said before can still be read.
            pass

    def raw(self, frame):
        self.flush()
        self.socket.sendall(frame.serialize())

    def ask(self, headers=REQUEST, end=True, body=None):
        stream = self.http.get_next_available_stream_id()
        self.http.send_headers(stream, headers, end_stream=end and body is None)
        if body is not None:
            self.http.send_data(stream, body, end_stream=end)
        self.flush()
        return stream

    def until(self, wanted, acknowledge=True):
        """Reads until an event for which `wanted` holds; None when the other side has closed first."""
        while True:
            for event in self.events:
                if wanted(event):
                    self.events.remove(event)
                    return event
            try:
                data = self.socket.recv(65536)
            except (ConnectionResetError, BrokenPipeError):
                data = b""
            if not data:
                return None
            for event in self.http.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                    if acknowledge and event.flow_controlled_length:
                        self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.events.append(event)
            self.flush()

    def ended(self, stream):
        return self.until(lambda it: isinstance(it, h2.events.StreamEnded) and it.stream_id == stream)

    def status(self, stream):
        wanted = lambda it: isinstance(it, h2.events.ResponseReceived) and it.stream_id == stream
        return int(dict(self.until(wanted).headers)[":status"])

    def refused(self, stream):
        """The stream was reset, the connection closed, or the answer says 4xx: in any case it was no request."""
        reset = lambda it: isinstance(it, (h2.events.StreamReset, h2.events.ConnectionTerminated))
        answer = lambda it: isinstance(it, h2.events.ResponseReceived) and it.stream_id == stream
        event = self.until(lambda it: reset(it) or answer(it))
        return event is None or reset(event) or 400 <= int(dict(event.headers)[":status"]) < 500



def fine():
    client = Client()
    stream = client.ask()
    assert client.status(stream) == 200 and client.ended(stream)


def plain_request():
    fine()


def settings_are_acknowledged():  # 6.5.3
    client = Client()
    assert client.until(lambda it: isinstance(it, h2.events.SettingsAcknowledged))


def ping_is_answered():  # 6.7
    client = Client()
    client.http.ping(b"12345678")
    client.flush()
    assert client.until(lambda it: isinstance(it, h2.events.PingAckReceived)).ping_data == b"12345678"


def many_streams_at_once():  # 5.1.2
    client = Client()
    streams = [client.ask() for _ in range(50)]
    for stream in streams:
        assert client.ended(stream)


def a_limit_on_streams_is_announced():  # 6.5.2, 10.5
    client = Client()
    changed = client.until(lambda it: isinstance(it, h2.events.RemoteSettingsChanged)).changed_settings
    limit = changed[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS].new_value
    assert 1 <= limit <= 256, limit


def flow_control_is_obeyed():  # 6.9
    client = Client()
    client.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    client.flush()
    client.until(lambda it: isinstance(it, h2.events.SettingsAcknowledged))
    stream = client.ask([(n, "/some" if n == ":path" else v) for n, v in REQUEST])
    # h2 itself raises where more comes than the window allows.
    assert client.ended(stream)
    assert len(client.bodies[stream]) == 200_000


def a_body_arrives_whole():
    client = Client()
    body = bytes(range(256)) * 100
    headers = [(n, "POST" if n == ":method" else v) for n, v in REQUEST] + [("content-length", str(len(body)))]
    stream = client.http.get_next_available_stream_id()
    client.http.send_headers(stream, headers)
    while body_left := body:
        room = min(client.http.local_flow_control_window(stream), client.http.max_outbound_frame_size, len(body_left))
        if room == 0:
            client.flush()
            client.until(lambda it: isinstance(it, h2.events.WindowUpdated))
            continue
        client.http.send_data(stream, body_left[:room])
        body = body_left[room:]
    client.http.end_stream(stream)
    client.flush()
    assert client.ended(stream)
    assert b"25600" in client.bodies[stream], client.bodies[stream]


def refused_headers():  # 8.2, 8.3
    without = lambda name: [(n, v) for n, v in REQUEST if n != name]
    for headers in [
        REQUEST + [("Upper", "x")],
        REQUEST + [("connection", "keep-alive")],
        REQUEST + [("transfer-encoding", "chunked")],
        REQUEST + [("keep-alive", "1")],
        REQUEST + [("upgrade", "websocket")],
        REQUEST + [("te", "gzip")],
        REQUEST + [("x", "a\r\nb: c")],
        REQUEST + [("x", "a\0b")],
        REQUEST + [("x y", "1")],
        REQUEST + [(":path", "/twice")],
        [("x", "1")] + REQUEST,
        without(":method"),
        without(":path"),
        [(n, "" if n == ":path" else v) for n, v in REQUEST],
        REQUEST + [(":unknown", "1")],
        REQUEST + [(":status", "200")],
        REQUEST + [("host", "other")],
        [(n, "user@x" if n == ":authority" else v) for n, v in REQUEST],
        [(n, "TRACE" if n == ":method" else v) for n, v in REQUEST],
    ]:
        client = Client()
        assert client.refused(client.ask(headers)), headers
        fine()


def a_length_that_does_not_fit_is_malformed():  # 8.1.1
    for length, body in [("3", b"12345"), ("50", b"12345")]:
        client = Client()
        headers = [(n, "POST" if n == ":method" else v) for n, v in REQUEST] + [("content-length", length)]
        assert client.refused(client.ask(headers, body=body)), length


def frames_that_break_the_connection():
    for name, frame in [
        ("DATA on stream 0 (6.1)", lambda: hand_made(0, 0, 0, b"x")),
        ("DATA on an idle stream (5.1)", lambda: hand_made(0, 0, 7, b"x")),
        ("HEADERS on stream 0 (6.2)", lambda: hand_made(1, 5, 0, b"\x82")),
        ("HEADERS on an even stream (5.1.1)", lambda: hand_made(1, 5, 2, b"\x82\x86\x84\x01\x01x")),
        ("PUSH_PROMISE from a client (8.4)", lambda: hand_made(5, 4, 1, b"\0\0\0\2\x82")),
        ("PING of 7 bytes (6.7)", lambda: hand_made(6, 0, 0, b"1234567")),
        ("PING on a stream (6.7)", lambda: hand_made(6, 0, 1, b"12345678")),
        ("SETTINGS on a stream (6.5)", lambda: hand_made(4, 0, 1, b"")),
        ("SETTINGS of 5 bytes (6.5)", lambda: hand_made(4, 0, 0, b"12345")),
        ("SETTINGS ack with a payload (6.5)", lambda: hand_made(4, 1, 0, b"123456")),
        ("WINDOW_UPDATE of 0 (6.9)", lambda: hand_made(8, 0, 0, b"\0\0\0\0")),
        ("WINDOW_UPDATE on an idle stream (5.1)", lambda: hand_made(8, 0, 9, b"\0\0\0\1")),
        ("RST_STREAM on an idle stream (5.1)", lambda: hand_made(3, 0, 9, b"\0\0\0\1")),
        ("CONTINUATION without HEADERS (6.10)", lambda: hand_made(9, 4, 1, b"\x82")),
        ("padding longer than its frame (6.1)", lambda: hand_made(1, 13, 1, b"\xff\x82")),
        ("a frame over the limit (4.2)", lambda: hand_made(0, 0, 1, b"x" * 20000)),
        ("a block that is none (4.3)", lambda: hand_made(1, 5, 1, b"\xff\xff\xff\xff\xff\xff")),
    ]:
        client = Client()
        client.until(lambda it: isinstance(it, h2.events.SettingsAcknowledged))
        client.flush()
        client.socket.sendall(frame())
        end = client.until(lambda it: isinstance(it, (h2.events.ConnectionTerminated, h2.events.StreamReset)))
        assert end is None or end, name
        fine()


def hand_made(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def unknown_frames_and_settings_are_ignored():  # 4.1, 5.5, 6.5.2
    client = Client()
    client.flush()
    client.socket.sendall(hand_made(77, 255, 0, b"what") + hand_made(4, 0, 0, b"\x7f\x7f\0\0\0\1"))
    stream = client.ask()
    assert client.status(stream) == 200


def priority_is_ignored():  # 5.3.2
    client = Client()
    client.flush()
    client.socket.sendall(hand_made(2, 0, 1, b"\0\0\0\3\x10"))
    stream = client.ask()
    assert client.status(stream) == 200


def trailers_do_not_break_a_request():  # 8.1
    client = Client()
    headers = [(n, "POST" if n == ":method" else v) for n, v in REQUEST]
    stream = client.ask(headers, end=False, body=b"hello")
    client.http.send_headers(stream, [("x-trailer", "1")], end_stream=True)
    client.flush()
    assert client.status(stream) == 200


CHECKS = [
    plain_request, settings_are_acknowledged, ping_is_answered, many_streams_at_once, a_limit_on_streams_is_announced,
    flow_control_is_obeyed, a_body_arrives_whole, refused_headers, a_length_that_does_not_fit_is_malformed,
    frames_that_break_the_connection, unknown_frames_and_settings_are_ignored, priority_is_ignored,
    trailers_do_not_break_a_request,
]
for check in CHECKS:
    check()
    print(check.__name__)
print(f"all {len(CHECKS)} checks passed")
