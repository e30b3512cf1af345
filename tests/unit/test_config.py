"""The configuration: where values come from, what is refused, and that the docs are current."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from queuecast import options
from queuecast.arrays import AllowConfig, BridgeConfig
from queuecast.brokers.base import BindingSpec
from queuecast.config import Config, document, from_tables, load, masked
from queuecast.errors import ConfigError
from queuecast.settings import ServerConfig

ROOT = Path(__file__).parents[2]


def load_in(
    tmp_path: Path, toml: str = "", env: dict[str, str] | None = None, **flags: str
) -> Config:
    (tmp_path / "queuecast.toml").write_text(toml, encoding="utf-8")
    dotted = {name.replace("__", "."): value for name, value in flags.items()}
    return load(dotted, environ=env or {}, directory=tmp_path)


def refused(tmp_path: Path, toml: str = "", env: dict[str, str] | None = None, **flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_in(tmp_path, toml, env, **flags)
    return str(caught.value)


def test_a_header_on_a_line_of_its_own_is_not_blamed(tmp_path: Path) -> None:
    assert "own" not in refused(tmp_path, '[[queue]]  # ours\nname = "orders\n')


def test_defaults_are_valid_and_listen_on_loopback() -> None:
    config = Config().check()
    assert (config.server.host, config.server.port) == ("127.0.0.1", 15674)
    assert config.limits.message == 1 << 20
    assert config.log.age == 300.0


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    toml = "[server]\nport = 1\ngrace = 1\nheartbeat = 1\n"
    env = {"QUEUECAST_SERVER__PORT": "2", "QUEUECAST_SERVER__GRACE": "2s"}
    server = load_in(tmp_path, toml, env, server__port="3").server
    assert (server.port, server.grace, server.heartbeat, server.retry) == (3, 2.0, 1.0, 2000)


def test_named_files_win_over_the_one_in_the_directory(tmp_path: Path) -> None:
    (tmp_path / "queuecast.toml").write_text("[server]\nport = 1")
    (tmp_path / "env.toml").write_text("[server]\nport = 2")
    (tmp_path / "flag.toml").write_text("[server]\nport = 3")
    env = {"QUEUECAST_CONFIG": "env.toml"}
    assert load(environ={}, directory=tmp_path).server.port == 1
    assert load(environ=env, directory=tmp_path).server.port == 2
    assert load(file="flag.toml", environ=env, directory=tmp_path).server.port == 3
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.toml"):
        load(file="missing.toml", environ={}, directory=tmp_path)


def test_kubernetes_variables_are_not_ours(tmp_path: Path) -> None:
    env = {"QUEUECAST_PORT": "tcp://10.0.0.1:80", "QUEUECAST_SERVICE_HOST": "10.0.0.1"}
    assert load_in(tmp_path, env=env) == Config()


def test_everything_in_one_file(tmp_path: Path) -> None:
    config = load_in(
        tmp_path,
        """
        [server]
        host = "0.0.0.0"
        prefix = "/push"
        origins = ["https://app.example", "http://[::1]:8080"]
        trusted_proxies = ["10.0.0.0/8"]
        [broker]
        url = "amqp://guest:guest@127.0.0.1:5672/"
        start = "exit"
        [limits]
        message = "64KB"
        head_timeout = "500ms"
        [[exchange]]
        name = "events"
        arguments = { alternate-exchange = "lost" }
        [[queue]]
        name = "orders"
        bindings = [{ exchange = "events", key = "order.#" }]
        [[bridge]]
        from = "/queue/orders"
        to = "/topic/orders"
        [aliases]
        "/events/{id}" = "/exchange/events/{id}"
        [[allow]]
        who = "*"
        subscribe = ["/topic/价格.#"]
        """,
    )
    assert config.limits.message == 65536
    assert config.limits.head_timeout == 0.5
    assert config.exchange_specs()[0].arguments == {"alternate-exchange": "lost"}
    assert config.queue_specs()[0].bindings == (BindingSpec("events", "order.#"),)
    assert [(str(a), str(b)) for a, b, _ in config.bridge_pairs()] == [
        ("/queue/orders", "/topic/orders")
    ]
    assert str(config.rules()[0].subscribe[0]) == "/topic/价格.#"


def test_lists_and_tables_in_the_environment(tmp_path: Path) -> None:
    env = {
        "QUEUECAST_SERVER__ORIGINS": "https://a.example, https://b.example",
        "QUEUECAST_SERVER__TRUSTED_PROXIES": '["10.0.0.1"]',
        "QUEUECAST_SERVER__DEMO": "yes",
        "QUEUECAST_ALLOW": '[{"subscribe": ["/topic/a"]}]',
        "QUEUECAST_ALIASES": '{"/sse": "/topic/news"}',
    }
    config = load_in(tmp_path, env=env)
    assert config.server.origins == ("https://a.example", "https://b.example")
    assert config.server.trusted_proxies == ("10.0.0.1",)
    assert config.server.demo is True
    assert config.allow[0].who == "anonymous"
    assert config.aliases == {"/sse": "/topic/news"}


@pytest.mark.parametrize(
    ("stomp", "sockjs"),
    [("/ws", "/stomp"), ("/ws", "/ws"), ("/app", "/app"), ("/app/v1", "/ws"), ("/stomp", "/stomp")],
)
def test_the_paths_of_stomp_may_be_chosen(tmp_path: Path, stomp: str, sockjs: str) -> None:
    text = f"""
        [server]
        stomp_path = "{stomp}"
        sockjs_path = "{sockjs}"
        [aliases]
        "/apps/{{id}}" = "/topic/{{id}}"
        "/v1/app" = "/topic/a"
    """
    paths = load_in(tmp_path, text).server.stomp_paths()
    assert (paths.websocket, paths.sockjs) == (stomp, sockjs)


def test_stomp_may_be_beside_an_alias_but_sockjs_not_above_one(tmp_path: Path) -> None:
    text = "[server]\n{0}_path = '/a'\n[aliases]\n'/a/b' = '/topic/b'"
    assert load_in(tmp_path, text.format("stomp")).server.stomp_path == "/a"
    assert "the alias '/a/b'" in refused(tmp_path, text.format("sockjs"))


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[server]\nprot = 1", ["[server]", "'prot'", "did you mean 'port'"]),
        ("[sever]\nport = 1", ["'sever'", "did you mean 'server'"]),
        ("[server]\nport = 'x'", ["server.port", "expected int", "'x'"]),
        ("[server]\nport = 65536", ["server.port", "<= 65535"]),
        ("[server]\nport = true", ["server.port", "expected int"]),
        ("server = 1", ["server", "expected a table"]),
        ("[server]\norigins = 'a'", ["server.origins", "expected a list"]),
        ("[server]\norigins = [1]", ["server.origins[0]", "expected str"]),
        ("[limits]\nmessage = '1XB'", ["limits.message", "is not a size", "64KB"]),
        ("[limits]\nmessage = -1", ["limits.message", "is not a size"]),
        ("[limits]\nmessage = '8MB'", ["limits.frame is less than limits.message"]),
        ("[log]\nage = '5 weeks'", ["log.age", "is not a duration", "5m"]),
        ("[broker]\nstart = 'perhaps'", ["broker.start", '"retry" or "exit"']),
        ("[broker]\nurl = 'nats://h'", ["broker.url", "amqp:", "kafka:"]),
        ("[broker]\nurl = 'kafka:h'", ["broker.url", "kafka://host"]),
        ("[[topic]]\nname = 'a'", ["topic[0]", "[[queue]]"]),
        (
            "[broker]\nurl = 'kafka://h'\n[[queue]]\nname = 'a'",
            ["queue[0]", "Kafka has nothing like", "/queue/TOPIC"],
        ),
        (
            "[broker]\nurl = 'kafka://h'\n[server]\ndemo = true",
            ["server.demo", "patterns of topics", "embedded:"],
        ),
        (
            "[broker]\nurl = 'kafka://h'\n[[exchange]]\nname = 'a'",
            ["exchange[0]", "Kafka has nothing like", "/exchange/TOPIC/PATTERN"],
        ),
        (
            "[[binary]]\ndestination = '/temp-queue/a'",
            ["binary[0].destination", "/topic/PATTERN"],
        ),
        ("[[binary]]\ndestination = 'avro'", ["binary[0].destination", "/topic/KEY"]),
        (
            "[broker]\nurl = 'kafka://h'\n[[retain]]\ndestination = '/topic/a'\nage = '1h'",
            ["retain[0]", "Kafka has nothing like", "retention.ms"],
        ),
        (
            "[broker]\nurl = 'kafka://h'\n[[topic]]\nname = 'a'\n[[topic]]\nname = 'a'",
            ["topic[1].name", "there twice"],
        ),
        ("[broker]\nurl = 'amqp:h'", ["broker.url", "amqp://host"]),
        ("[broker]\npassword_file = '/p'", ["broker.password_file", "embedded:"]),
        ("[broker]\ncertfile = '/p'", ["broker.certfile", "embedded:"]),
        (
            "[[retain]]\ndestination = '/topic/a'\nage = '1h'\nreplicas = 3",
            ["retain[0].replicas", "embedded"],
        ),
        ("[[exchange]]\ntype = 'topic'", ["exchange[0]", "lacks 'name'"]),
        (
            "[[exchange]]\nname = 'a'\ntype = 'tpic'",
            ["exchange[0].type", "'tpic'", "topic, fanout, headers", "begins with x-"],
        ),
        (
            "[[exchange]]\nname = 'a'\ntype = 'x-random'",
            ["exchange[0].type", "embedded", "direct, topic, fanout, headers", "RabbitMQ"],
        ),
        (
            "[broker]\nurl = 'amqp://h'\n[[exchange]]\nname = 'a'\ntype = 'x-delayed-message'",
            ["exchange[0].arguments", "x-delayed-type is missing"],
        ),
        (
            "[[exchange]]\nname = 'a'\ntype = 'direct'\n"
            "[[queue]]\nname = 'q'\nbindings = [{exchange = 'a', key = 'x.*'}]",
            ["queue[0].bindings[0].key", "'a' is direct", "'x.*'", "name each key"],
        ),
        (
            "[[queue]]\nname = 'q'\nbindings = [{exchange = 'amq.direct', key = '#'}]",
            ["queue[0].bindings[0].key", "make it a topic exchange"],
        ),
        (
            "[broker]\nurl = 'amqp://h'\n[[exchange]]\nname = 'a'\ntype = 'x-consistent-hash'\n"
            "[[queue]]\nname = 'q'\nbindings = [{exchange = 'a', key = 'k'}]",
            ["queue[0].bindings[0].key", "weight", "whole number"],
        ),
        (
            "[broker]\nurl = 'amqp://h'\n[[exchange]]\nname = 'a'\ntype = 'x-delayed-message'\n"
            "arguments = {x-delayed-type = 'direct'}\n"
            "[[queue]]\nname = 'q'\nbindings = [{exchange = 'a', key = 'k.#'}]",
            ["queue[0].bindings[0].key", "is direct"],
        ),
        ("[[exchange]]\nname = 'a'\n[[exchange]]\nname = 'a'", ["exchange[1].name", "'a'"]),
        ("[[queue]]\nname = 'a'\nbindings = [{key = 'k'}]", ["queue[0].bindings[0]", "'exchange'"]),
        ("[[bridge]]\nfrom = '/topic/a'\nto = '/topic/b'", ["bridge[0].from", "/queue/NAME"]),
        ("[[bridge]]\nfrom = '/queue/a'\nto = '/topic/#'", ["bridge[0].to", "without wildcards"]),
        ("[[bridge]]\nfrom = '/queue/a'\nto = 'b'", ["bridge[0].to", "unknown destination"]),
        ("[[allow]]\nsubscribe = ['topic/a']", ["allow[0].subscribe[0]", "unknown destination"]),
        ("[aliases]\n'/a/{x}' = '/topic/b'", ["aliases: '/a/{x}'", "parameters"]),
        ("[server]\nprefix = 'push/'", ["server.prefix", "/push"]),
        (
            "[server]\nsockjs_client_url = 'sockjs.js'",
            ["server.sockjs_client_url: 'sockjs.js' is no script's address", "https://cdn.example"],
        ),
        (
            """[server]\nsockjs_client_url = 'https://a.example/"><script>'""",
            ["server.sockjs_client_url", "is no script's address"],
        ),
        ("[server]\nstomp_path = 'ws'", ["server.stomp_path: 'ws' is not a path"]),
        ("[server]\nstomp_path = '/'", ["server.stomp_path: '/' is not a path"]),
        ("[server]\nstomp_path = '/a/'", ["server.stomp_path: '/a/' is not a path"]),
        ("[server]\nstomp_path = '/a/../b'", ["server.stomp_path", "is not a path"]),
        ("[server]\nstomp_path = '/a?b'", ["server.stomp_path", "is not a path"]),
        ("[server]\nstomp_path = '/sse'", ["server.stomp_path: '/sse' is /sse, a path of the"]),
        ("[server]\nstomp_path = '/poll/x'", ["server.stomp_path: '/poll/x' lies under /poll"]),
        ("[server]\nstomp_path = '/ws/x'", ["server.stomp_path: '/ws/x' lies under /ws"]),
        ("[server]\nsockjs_path = '/metrics'", ["server.sockjs_path: '/metrics' is /metrics"]),
        ("[server]\nsockjs_path = '/publish/a'", ["server.sockjs_path", "lies under /publish"]),
        (
            "[server]\nstomp_path = '/stomp/raw'",
            ["server.stomp_path: '/stomp/raw'", "server.sockjs_path '/stomp'"],
        ),
        (
            "[server]\nstomp_path = '/chat'\n[aliases]\n'/chat' = '/topic/chat'",
            ["server.stomp_path: '/chat'", "the alias '/chat'"],
        ),
        (
            "[server]\nstomp_path = '/a/b'\n[aliases]\n'/a/{x}' = '/topic/{x}'",
            ["server.stomp_path: '/a/b'", "the alias '/a/{x}'"],
        ),
        (
            "[server]\nsockjs_path = '/a/b'\n[aliases]\n'/a/{x}/c' = '/topic/{x}'",
            ["server.sockjs_path: '/a/b'", "the alias '/a/{x}/c'"],
        ),
        (
            "[server]\ndemo = true\nstomp_path = '/demo/chat'",
            ["server.stomp_path: '/demo/chat' lies under /demo"],
        ),
        ("[server]\nws_frame = 'blob'", ["server.ws_frame", '"text" or "binary"']),
        ("[server]\norigins = ['*']", ["server.origins[0]", "never"]),
        ("[server]\norigins = ['https://a.example/']", ["server.origins[0]", "not an origin"]),
        ("[server]\ntrusted_proxies = ['10.0.0.0/99']", ["server.trusted_proxies[0]"]),
        ("[server", ["is not TOML"]),
        ('[[allow]] who = "x" subscribe = ["/topic/#"]', ["is not TOML", "lines of their own"]),
    ],
)
def test_what_is_refused_names_the_setting_and_what_is_allowed(
    tmp_path: Path, toml: str, words: list[str]
) -> None:
    text = refused(tmp_path, toml)
    assert [word for word in words if word not in text] == [], text


def test_wrong_variables_and_flags_are_named(tmp_path: Path) -> None:
    text = refused(tmp_path, env={"QUEUECAST_SERVER__PRT": "1"})
    assert "'QUEUECAST_SERVER__PORT'" in text
    assert "QUEUECAST_LOG__AGE" in refused(tmp_path, env={"QUEUECAST_LOG__AGE": "x"})
    assert "QUEUECAST_ALLOW: not JSON" in refused(tmp_path, env={"QUEUECAST_ALLOW": "[x"})
    assert "QUEUECAST_ALIASES: not JSON" in refused(tmp_path, env={"QUEUECAST_ALIASES": "x"})
    assert "QUEUECAST_SERVER__KEY" in refused(tmp_path, env={"QUEUECAST_SERVER": "{}"})
    assert refused(tmp_path, server__port="abc").startswith("--port: 'abc'")
    assert "yes or no" in refused(tmp_path, server__demo="perhaps")


@pytest.mark.parametrize(
    "server",
    [
        ServerConfig(host="0.0.0.0"),
        ServerConfig(host="example.org"),
        ServerConfig(origins=("https://app.example",)),
        ServerConfig(trusted_proxies=("127.0.0.1",)),
    ],
)
def test_what_reaches_beyond_loopback_needs_rules_or_allow_anyone(server: ServerConfig) -> None:
    with pytest.raises(ConfigError, match=r"\[\[allow\]\].*--allow-anyone"):
        Config(server=server).check()

    Config(server=msgspec.structs.replace(server, allow_anyone=True)).check()

    Config(server=server, allow=(AllowConfig(subscribe=("/topic/a",)),)).check()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.2", "::1", "queue.localhost"])
def test_loopback_needs_no_rules(host: str) -> None:
    Config(server=ServerConfig(host=host)).check()


def test_bridges_can_be_built_in_programs() -> None:
    Config(bridges=(BridgeConfig(source="/amq/queue/a", target="/exchange/b/c"),)).check()


@pytest.mark.parametrize(
    ("text", "size"),
    [(7, 7), ("7", 7), ("1KB", 1024), ("1.5 kib", 1536), ("64MB", 64 << 20), ("1GB", 1 << 30)],
)
def test_sizes(text: object, size: int) -> None:
    assert options.parse_size(text) == size
    assert options.parse_size(options.show_size(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (2, 2.0),
        (0.5, 0.5),
        ("250ms", 0.25),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("2d", 172800.0),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert options.parse_duration(text) == pytest.approx(seconds)
    assert options.parse_duration(options.show_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("embedded:", "embedded:"),
        ("amqp://host:5672/", "amqp://host:5672/"),
        ("amqp://guest:secret@host:5672/v", "amqp://guest:***@host:5672/v"),
        ("amqps://u:p@ss/w@host", "amqps://u:***@host"),
        ("amqp://:secret@host", "amqp://:***@host"),
        ("amqp://u:secret@a,b:1,[::1]/v", "amqp://u:***@a,b:1,[::1]/v"),
        ("https://h/sse?token=abc&last=1", "https://h/sse?token=***&last=1"),
    ],
)
def test_passwords_are_masked(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_every_option_has_help_and_one_name_of_each_kind() -> None:
    every = list(options.options(Config))
    assert all(each.help for each in every)
    flags = [each.flag for each in every if each.flag]
    assert len(flags) == len(set(flags))
    assert {each.env for each in every} >= {"QUEUECAST_SERVER__PORT", "QUEUECAST_BROKER__URL"}


def test_shown_defaults_read_back_as_the_defaults(tmp_path: Path) -> None:
    toml = ""
    table = ""
    for each in options.options(Config):
        if each.table != table:
            table = each.table
            toml += f"[{table}]\n"
        toml += f"{each.key} = {each.shown_default}\n"
    assert load_in(tmp_path, toml) == Config()


def test_the_documentation_is_current() -> None:
    """Made anew by: python -m queuecast.config > docs/configuration.md"""
    assert (ROOT / "docs/configuration.md").read_text("utf-8") == document()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("61613", ("127.0.0.1", 61613)),
        ("0", ("127.0.0.1", 0)),
        ("localhost:61613", ("localhost", 61613)),
        ("[::1]:61613", ("::1", 61613)),
    ],
)
def test_where_stomp_listens(text: str, address: tuple[str, int] | None) -> None:
    config = Config(server=ServerConfig(stomp_tcp=text)).check()
    assert config.server.stomp_address() == address


@pytest.mark.parametrize("text", ["x", "65536", ":61613", "::1:61613", "a b:1", "-1", "1:2:3"])
def test_where_stomp_cannot_listen(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.stomp_tcp"):
        Config(server=ServerConfig(stomp_tcp=text)).check()


def test_stomp_beyond_loopback_needs_rules_too() -> None:
    with pytest.raises(ConfigError, match=r"stomp_tcp.*\[\[allow\]\]"):
        Config(server=ServerConfig(stomp_tcp="0.0.0.0:61613")).check()


def test_an_admin_listener_beyond_loopback_needs_a_token() -> None:
    assert from_tables({"admin": {"listen": "15675"}}).admin.address() == ("127.0.0.1", 15675)
    assert from_tables({}).admin.address() is None
    for listen in ("0.0.0.0:15675", "[::]:1", "10.0.0.1:15675"):
        with pytest.raises(ConfigError, match=r"admin\.token"):
            from_tables({"admin": {"listen": listen}})
        made = from_tables({"admin": {"listen": listen, "token": "long-enough"}})
        assert made.admin.address() is not None
    with pytest.raises(ConfigError, match=r"admin\.listen"):
        from_tables({"admin": {"listen": "here"}})
    with pytest.raises(ConfigError, match=r"admin\.token"):
        from_tables({"admin": {"token": "short"}})
