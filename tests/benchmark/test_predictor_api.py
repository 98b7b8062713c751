"""VLMs on a server, against one on loopback: what is sent, retried, paid for and kept on disk."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from email.utils import formatdate

import chat_server
import numpy as np
import pytest
from chat_server import ChatServer, Reply, Request, completion, serve
from depthvlm.benchmark.systems import make_predictor
from depthvlm.benchmark.systems.api import ApiVLM, CostLimitReached
from depthvlm.benchmark.systems.arrow import ARROW_PROMPT, draw_arrow
from depthvlm.benchmark.systems.chat import ChatClient, ChatServerError, RateLimiter
from depthvlm.benchmark.systems.interface import Example
from PIL import Image

SECRET = "sk-a-secret"
GARBAGE = (b"<html>502</html>", b"", b"{}", b'{"choices": []}', b"[]", b'{"choices": [{"message": null}]}')
NARROW = (500.0, 500.0, 40.0, 30.0)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def example(seed: int, points: int = 1, size: tuple[int, int] = (80, 60)) -> Example:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    columns, rows = rng.integers(0, size[0], points), rng.integers(0, size[1], points)
    return Example(f"e{seed}", image, NARROW, np.stack([columns, rows], 1).astype(np.float64))


ANSWER = completion("<answer>2.5</answer>")


def script(*replies: Reply):
    """These replies in turn, then an ordinary answer for ever."""
    return lambda _, number: replies[number] if number < len(replies) else ANSWER


def options_sent(request: Request) -> dict:
    return {name: value for name, value in request.body.items() if name != "messages"}


def asked(folder, *replies: Reply, examples: list[Example] | None = None, **options) -> tuple[ChatServer, list]:
    """A server with these replies after it was asked, and its answers."""
    with serve(script(*replies)) as server:
        return server, vlm(server, folder, **options).predict(examples or [example(0)])


def refused(words: str, folder, *replies: Reply, requests: int = 1, **options) -> str:
    """Asserts that asking fails with words that match, after so many requests; returns the error's text."""
    with serve(script(*replies)) as server:
        with pytest.raises(ChatServerError, match=words) as caught:
            vlm(server, folder, **options).predict([example(0)])
        for reply in replies:
            if reply.hold is not None:
                reply.hold.set()
    assert len(server.requests) == requests
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def vlm(server: ChatServer, folder, waits: list[float] | None = None, **options) -> ApiVLM:
    """`waits` takes what it would have waited for."""
    options = {"concurrency": 1, "max_retries": 3, **options}
    sleep = (lambda seconds: None) if waits is None else waits.append
    return ApiVLM("gpt-test", base_url=server.url, cache=folder, sleep=sleep, **options)


class TestRequest:
    def test_what_arrives(self, tmp_path):
        one = example(0)
        server, [[answer]] = asked(tmp_path)
        assert (answer.metres, answer.text) == (2.5, "<answer>2.5</answer>")
        [request] = server.requests
        assert request.path == "/v1/chat/completions"
        assert request.headers["authorization"] == f"Bearer {SECRET}"
        picture, words = request.body["messages"][0]["content"]
        assert words == {"type": "text", "text": ARROW_PROMPT}
        assert picture["type"] == "image_url"
        assert request.image_url.startswith("data:image/png;base64,")
        drawn = draw_arrow(one.image, tuple(int(x) for x in one.points[0]))
        assert np.array_equal(np.asarray(request.image), np.asarray(drawn))
        assert options_sent(request) == {"model": "gpt-test", "max_tokens": 1024, "temperature": 0.0}
        [file] = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert SECRET not in file.read_text()

    def test_options_of_reasoning_models(self, tmp_path):
        options = {"token_parameter": "max_completion_tokens", "temperature": None, "max_new_tokens": 99}
        server, _ = asked(tmp_path, **options, extra_body={"reasoning_effort": "low"})
        expected = {"model": "gpt-test", "max_completion_tokens": 99, "reasoning_effort": "low"}
        assert options_sent(server.requests[0]) == expected

    def test_large_images_and_jpeg(self, tmp_path):
        server, _ = asked(tmp_path, examples=[example(0, size=(2048, 1024))], image_format="jpeg")
        [request] = server.requests
        assert request.image_url.startswith("data:image/jpeg;base64,")
        assert (request.image.size, request.image.format) == ((1024, 512), "JPEG")

    @pytest.mark.parametrize("key", [None, "A_KEY"])
    def test_no_other_servers_secrets_are_sent(self, tmp_path, monkeypatch, key):
        secrets = {"HF_TOKEN": "hf_of_the_user", "OPENAI_ADMIN_KEY": "sk-admin", "OPENAI_ORG_ID": "org-mine"}
        secrets["OPENAI_CUSTOM_HEADERS"] = "Authorization: Bearer other-secret\nX-Gateway: other-secret"
        for name, value in {**secrets, "HF_HUB_OFFLINE": "1", "A_KEY": "its-own-key"}.items():
            monkeypatch.setenv(name, value)
        server, _ = asked(tmp_path, api_key_env=key)
        headers = server.requests[0].headers
        assert headers.get("authorization") == (None if key is None else "Bearer its-own-key")
        leaked = ("hf_of_the_user", "sk-admin", "org-mine", "other-secret", SECRET)
        assert [secret for secret in leaked if secret in str(headers)] == []

    def test_nothing_follows_to_another_server(self, tmp_path):
        with serve(script()) as other:
            elsewhere = Reply(307, b"over there", {"Location": f"{other.url}/chat/completions"})
            refused("refused with status 307: over there", tmp_path, elsewhere)
        assert other.requests == []

    def test_order_of_answers(self, tmp_path):
        """With several requests under way, later ones answered first."""
        first = threading.Event()

        def answer(request: Request, _: int) -> Reply:
            mean = np.asarray(request.image)[..., 2].mean()
            if mean < 50:
                first.wait(10)
            first.set()
            return completion(f"<answer>{mean:.3f}</answer>")

        values = (20, 80, 140, 200)
        images = [Image.fromarray(np.full((60, 80, 3), value, dtype=np.uint8)) for value in values]
        with serve(answer) as server:
            flat = [Example(str(i), image, NARROW, np.array([[40.0, 30.0]])) for i, image in enumerate(images)]
            answers = vlm(server, tmp_path, concurrency=2).predict(flat)
        # 40 pixels of 4800 are red: no blue in them.
        assert [a.metres for [a] in answers] == [round(v * (1 - 40 / 4800), 3) for v in values]

    def test_no_more_at_once_than_asked_for(self, tmp_path):
        together = threading.Barrier(3)

        def answer(_: Request, number: int) -> Reply:
            if number < 3:
                together.wait(60)
            return completion("<answer>1</answer>")

        with serve(answer) as server:
            vlm(server, tmp_path, concurrency=3).predict([example(i, 4) for i in range(4)])
        assert len(server.requests) == 16
        assert server.most_at_once == 3


class TestRetries:
    @pytest.mark.parametrize(
        ("replies", "between"),
        [
            ([(429, b'{"error": "slow down"}', "17")], [(17, 17)]),
            # Not understood: the backoff before the second retry. It is 1 s and 2 s, times 0.5 to 1.
            ([(429, b"", "in 100 s"), (429, b"", "soon")], [(60, 100), (1, 2)]),
            ([(500, b"", None), (503, b"overloaded", None)], [(0.5, 1), (1, 2)]),
            *(([(200, body, None)], [(0.5, 1)]) for body in GARBAGE),
        ],
    )
    def test_an_answer_in_the_end(self, tmp_path, replies, between):
        dates = {"in 100 s": formatdate(time.time() + 100, usegmt=True)}
        made = [Reply(s, body, {"Retry-After": dates.get(later, later)} if later else {}) for s, body, later in replies]
        waits: list[float] = []
        server, [[answer]] = asked(tmp_path, *made, waits=waits)
        assert answer.metres == 2.5
        assert len(server.requests) == len(replies) + 1
        assert len(waits) >= len(between)
        for wait, (low, high) in zip(waits, between, strict=False):
            assert low <= wait <= high

    def test_no_answer_in_the_end(self, tmp_path):
        garbage = r"after 4 tries; the last: .*no chat completion: <html>sorry</html>"
        refused(garbage, tmp_path, *[Reply(200, b"<html>sorry</html>")] * 9, requests=4)
        assert list(tmp_path.rglob("*.json")) == []
        waits: list[float] = []
        silent, options = [Reply(hold=threading.Event())] * 9, {"timeout": 0.1, "max_retries": 2, "waits": waits}
        text = refused("after 3 tries; the last: no answer within 0.1 s", tmp_path, *silent, requests=3, **options)
        assert len(waits) == 2
        assert "The answers so far are kept in" in text
        with serve(script()) as server:
            pass
        with pytest.raises(ChatServerError, match="after 4 tries; the last: ConnectError"):
            vlm(server, tmp_path).predict([example(0)])

    @pytest.mark.parametrize("status", [400, 401, 403, 404])
    def test_refused(self, tmp_path, status):
        body = json.dumps({"error": {"message": f"Incorrect API key provided: {SECRET}"}}).encode()
        text = refused(f"refused with status {status}: .*Incorrect API key", tmp_path, *[Reply(status, body)] * 9)
        assert SECRET not in text
        assert ("Is the API key right" in text) == (status in (401, 403))

    def test_waits_that_are_not_worth_it(self, tmp_path):
        body = b'{"error": {"code": "insufficient_quota", "message": "You exceeded your quota"}}'
        refused(r"status 429: .*You exceeded your quota", tmp_path, *[Reply(429, body)] * 9)
        waits: list[float] = []
        later = Reply(429, b"daily limit", {"Retry-After": "86400"})
        refused("asks to wait for 86400 s", tmp_path, later, waits=waits)
        assert waits == []


def test_what_cannot_be_read_is_wrong_and_kept(tmp_path):
    texts = ["I see no arrow.", "<answer>-2</answer>", None, "<answer>3</answer>"]
    replies = [completion(text, finish="stop" if text else "length") for text in texts]
    four = [example(i) for i in range(4)]
    with serve(script(*replies)) as server:
        answers = vlm(server, tmp_path).predict(four)
        assert vlm(server, tmp_path).predict(four)[3][0].metres == 3
        # Examples without points.
        assert vlm(server, tmp_path).predict([example(0, 0), example(1)])[0] == []
        assert vlm(server, tmp_path).predict([]) == []
    assert [math.isnan(answer.metres) for [answer] in answers] == [True, True, True, False]
    assert [answer.text for [answer] in answers] == ["I see no arrow.", "<answer>-2</answer>", "", texts[3]]
    assert len(server.requests) == 4


class TestCost:
    def test_usage_is_counted(self, tmp_path):
        with serve(script(completion("<answer>1</answer>", (900, 20)), completion("?", (1100, 80)))) as server:
            api = vlm(server, tmp_path, input_price=2.5, output_price=10.0)
            assert api.cost == 0
            api.predict([example(0), example(1)])
            assert (api.requests, api.input_tokens, api.output_tokens) == (2, 2000, 100)
            assert api.cost == pytest.approx(0.005 + 0.001)
            again = vlm(server, tmp_path, input_price=2.5, output_price=10.0)
            again.predict([example(0), example(1)])
        assert (again.requests, again.cost) == (0, 0)
        assert vlm(server, tmp_path).cost is None

    def test_a_limit_stops(self, tmp_path):
        # 1000 * 2 + 50 * 10 in millionths: 0.0025 a request; the limit is reached with the third.
        options = {"input_price": 2.0, "output_price": 10.0}
        six = [example(i) for i in range(6)]
        with serve(script()) as server:
            with pytest.raises(CostLimitReached, match=r"spent 0.0075 of 0.0075 \(3 requests\)"):
                vlm(server, tmp_path, max_cost=0.0075, **options).predict(six)
            assert len(server.requests) == 3
            assert len(vlm(server, tmp_path, max_cost=0.0076, **options).predict(six)) == 6
        assert len(server.requests) == 6

    def test_a_server_that_does_not_count(self, tmp_path):
        options = {"input_price": 2.0, "output_price": 10.0, "max_cost": 1.0}
        with serve(script(*[completion("<answer>1</answer>", None)] * 2)) as server:
            with pytest.raises(ValueError, match="does not count tokens"):
                vlm(server, tmp_path, **options).predict([example(0)])
            assert vlm(server, tmp_path).predict([example(0)])[0][0].metres == 1
        assert len(server.requests) == 1


class TestCache:
    def test_equal_questions_are_asked_once(self, tmp_path):
        """Small sets are oversampled: the same image and point come again, in one batch too."""
        server, answers = asked(tmp_path, examples=[example(0, 3)] * 5, concurrency=4)
        assert len(server.requests) == 3
        assert [len(of_image) for of_image in answers] == [3] * 5

    def test_what_makes_another_question(self, tmp_path):
        with serve(script()) as server, serve(script()) as other:
            for options in ({}, {"prompt": "How far?"}, {"temperature": 1.0}, {"arrow_length": 5}, {}):
                vlm(server, tmp_path, **options).predict([example(0)])
            vlm(other, tmp_path).predict([example(0)])
        assert len(server.requests) == 4
        assert len(other.requests) == 1

    def test_an_error_keeps_what_was_answered(self, tmp_path):
        four = [example(i) for i in range(4)]
        with serve(script(completion("<answer>1</answer>"), completion("<answer>2</answer>"), Reply(400))) as server:
            with pytest.raises(ChatServerError):
                vlm(server, tmp_path).predict(four)
            asked = len(server.requests)
            assert asked == 3  # nothing more is asked after an error
            answers = vlm(server, tmp_path).predict(four)
        assert len(server.requests) == asked + 2
        assert [a.metres for [a] in answers] == [1, 2, 2.5, 2.5]

    @pytest.mark.slow
    def test_killed_half_way(self, tmp_path):
        """Twelve questions, two at once; the process is killed while two wait. Nothing is paid for twice."""
        hold, half_way = threading.Event(), threading.Event()

        def answer(_: Request, number: int) -> Reply:
            if number < 6:
                return completion("<answer>2.5</answer>")
            if number == 7:
                half_way.set()
            return Reply(hold=hold) if number < 8 else completion("<answer>2.5</answer>")

        run = (
            "import sys\n"
            "sys.path[:0] = sys.argv[3:]\n"
            "from test_predictor_api import ApiVLM, example\n"
            "api = ApiVLM('gpt-test', base_url=sys.argv[1], cache=sys.argv[2], concurrency=2)\n"
            "api.predict([example(i, 3) for i in range(4)])\n"
        )
        with serve(answer) as server:
            folders = [os.path.dirname(file) for file in (__file__, chat_server.__file__)]
            command = [sys.executable, "-c", run, server.url, str(tmp_path), *folders]
            process = subprocess.Popen(command)
            try:
                assert half_way.wait(120)
                process.send_signal(signal.SIGKILL)
            finally:
                process.kill()
                process.wait(10)
            hold.set()
            assert len(list(tmp_path.rglob("*.json"))) == 6
            assert list(tmp_path.rglob("*.tmp")) == []
            answers = vlm(server, tmp_path, concurrency=2).predict([example(i, 3) for i in range(4)])
        assert [a.metres for of_image in answers for a in of_image] == [2.5] * 12
        # 6 answered, 2 that nobody waited for any more, and the 6 that were missing.
        assert len(server.requests) == 14
        assert len(server.answered) == 12
        assert set(server.answered.values()) == {1}


class TestLimits:
    def test_requests_per_minute(self):
        now, waits = [100.0], []
        limiter = RateLimiter(30, clock=lambda: now[0], sleep=waits.append)
        for now[0] in (100.0, 100.0, 100.0, 105.0, 200.0, 200.0):
            limiter.wait()  # at 100, 102, 104 and 106, then at 200 and 202
        assert waits == [2.0, 4.0, 1.0, 2.0]
        with pytest.raises(ValueError, match="must be positive"):
            RateLimiter(0)

    def test_all_tries_count(self, tmp_path):
        waits: list[float] = []
        asked(tmp_path, Reply(500, headers={"Retry-After": "0"}), waits=waits, requests_per_minute=0.5)
        # A retry at once, as the server allows, and then its turn two minutes after the first try.
        assert waits == [0, pytest.approx(110, abs=10)]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"api_key_env": "NOT_THERE"}, "NOT_THERE holds no API key"),
            ({"max_cost": 1.0}, "needs `input_price`"),
            ({"input_price": 1.0}, "both `input_price` and `output_price`"),
            ({"image_format": "webp"}, "png or jpeg, got 'webp'"),
            ({"concurrency": 0}, "at least 1"),
            ({"base_url": "localhost:8000"}, "begins with http"),
        ],
    )
    def test_options_that_make_no_sense(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            ApiVLM("m", **{"cache": tmp_path, **options})

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(ImportError, match=r'GPT-4o needs openai \(.*\)\. pip install "depthvlm\[bench\]"'):
            make_predictor("gpt-4o")

    def test_the_default_cache_is_in_the_hugging_face_cache(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path))
        assert ApiVLM("m").cache.folder == tmp_path / "depthvlm" / "answers" / "api"

    def test_a_stop_from_another_thread(self):
        stop = threading.Event()
        with serve(script(*[Reply(500)] * 9)) as server:
            client = ChatClient(server.url, None, sleep=lambda _: stop.set())
            with pytest.raises(ChatServerError, match="after one try"):
                client.complete("m", [{"role": "user", "content": [{"image_url": {"url": "x"}}]}], {}, stop)
        assert len(server.requests) == 1
