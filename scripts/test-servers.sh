#!/usr/bin/env bash
# Installs what the tests drive and this machine lacks: RabbitMQ 3.10, 4.0 and 4.3, Kafka, Chromium,
# nginx, Node.js packages, Java and Spring's STOMP relay. Debian packages only as root and with
# apt-get; elsewhere it names what is missing and goes on, and the tests that need it are skipped by
# name (with CI=true they fail). It starts no service: the tests run their own servers on private
# ports, beside whatever is running already.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=()
roots=()
have() { command -v "$1" >/dev/null 2>&1; }
want() { packages+=("$1"); }

# nginx, debootstrap and RabbitMQ live in sbin folders, which a user's PATH may not have.
PATH=$PATH:/usr/sbin:/usr/local/sbin

# A RabbitMQ that is not this system's own comes with the Debian it is part of, in a folder that
# the tests chroot into. All checkouts of a user share them: tests/support/servers.py looks there.
cache=${XDG_CACHE_HOME:-~/.cache}/queuecast

want_rabbitmq() { # version, the Debian that has it
    if compgen -G "/usr/lib/rabbitmq/lib/rabbitmq_server-$1.*/sbin/rabbitmq-server" >/dev/null ||
        compgen -G "${RABBITMQ_HOME:-/nowhere}/plugins/rabbit-$1.*" >/dev/null ||
        [ -d "$cache/rabbitmq-$1" ]; then
        return
    fi
    if [ "$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}")" = "$2" ]; then
        want rabbitmq-server
    elif [ "$(uname)" = Linux ] && [ "$(id -u)" = 0 ] && have apt-get; then
        have debootstrap || want debootstrap
        # Without Debian's keys, as on Ubuntu, debootstrap would not check what it gets.
        [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || want debian-archive-keyring
        roots+=("$1 $2")
    else
        echo "RabbitMQ $1 is missing: only root can set it up here, and only on Linux." >&2
    fi
}

if [ -z "${QUEUECAST_TEST_AMQP:-}" ]; then
    want_rabbitmq 3.10 bookworm
    want_rabbitmq 4.0 trixie
    want_rabbitmq 4.3 forky
fi
# Kafka needs Java 17 or newer, and Maven to get it; KAFKA_BOOTSTRAP names one that runs already.
kafka=$(sed -n 's/.*<kafka.version>\(.*\)<.*/\1/p' scripts/kafka.pom.xml)
if [ -z "${KAFKA_BOOTSTRAP:-}" ]; then
    have java || want default-jdk-headless
    [ -d "$cache/kafka-$kafka" ] || have mvn || want maven
    have openssl || want openssl
fi
[ -n "${QUEUECAST_TEST_CHROMIUM:-}" ] || have chromium || have chromium-browser ||
    have google-chrome || want chromium
have nginx || want nginx-light
have node || want nodejs
have npm || want npm
have javac || want default-jdk-headless
have mvn || want maven
# Chinese pages need a font to be laid out with; only Debian's is looked for.
if have dpkg-query; then
    dpkg-query -W -f '${Status}' fonts-noto-cjk 2>/dev/null | grep -q 'ok installed' ||
        want fonts-noto-cjk
fi

install_packages() {
    # Debian starts a service as soon as its package is installed; this file forbids it, so that
    # nothing takes RabbitMQ's or nginx's usual port. An existing policy is left as it is.
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${packages[@]}"
}

if [ ${#packages[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && have apt-get; then
        install_packages
    else
        echo "Missing for the tests that need them: ${packages[*]}" >&2
        echo "On Debian and Ubuntu: sudo apt-get install ${packages[*]}" >&2
    fi
fi

make_root() ( # version, the Debian that has it; a subshell, so that the lock ends with it
    root=$cache/rabbitmq-$1
    part=$root.part
    mkdir -p "$cache"
    exec 9>"$root.lock"
    flock 9
    # Another run may have made it while this one waited.
    [ ! -d "$root" ] || exit 0
    # Whoever began this one was stopped. Its mounts went with it, but never delete through one.
    rm -rf --one-file-system "$part"
    echo "Setting up RabbitMQ $1 of Debian $2 in $root; this takes about a minute."
    # debootstrap does not ask apt how to reach its mirror.
    proxy=
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    [ -z "$proxy" ] || export http_proxy=${http_proxy:-$proxy}
    # In a mount namespace of its own no mount of debootstrap's stays, however it ends.
    # A Debian that is newer than this debootstrap is set up as its unstable one.
    script=/usr/share/debootstrap/scripts/$2
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    unshare --mount debootstrap --variant=minbase --include=rabbitmq-server "$2" "$part" "" \
        "$script" >"$root.log" 2>&1 || {
        tail -n 20 "$root.log" >&2
        exit 1
    }
    # An Erlang node has to find its own host.
    printf '127.0.0.1 localhost\n' >"$part/etc/hosts"
    rm -rf "$part"/var/cache/apt/archives/*.deb "$part"/var/lib/apt/lists/*
    # Only what is complete gets the name that is looked for.
    mv -T "$part" "$root"
)

for root in ${roots[@]+"${roots[@]}"}; do
    # shellcheck disable=SC2086  # two words
    make_root $root ||
        echo "RabbitMQ ${root% *} could not be set up: the tests cannot run on it." >&2
done

make_kafka() ( # a subshell, so that the lock ends with it
    jars=$cache/kafka-$kafka
    mkdir -p "$cache"
    exec 9>"$jars.lock"
    flock 9
    [ ! -d "$jars" ] || exit 0
    rm -rf "$jars.part"
    echo "Getting Kafka $kafka with Maven into $jars."
    # The quiet mode still prints errors, which say what could not be had.
    mvn -q -B -f scripts/kafka.pom.xml dependency:copy-dependencies -DincludeScope=runtime \
        -DoutputDirectory="$jars.part"
    mv -T "$jars.part" "$jars"
)

if [ -z "${KAFKA_BOOTSTRAP:-}" ] && [ ! -d "$cache/kafka-$kafka" ]; then
    if have mvn && have java; then
        make_kafka || echo "Kafka $kafka could not be had: the tests cannot run on it." >&2
    else
        echo "Kafka $kafka is missing: getting it needs mvn, running it java." >&2
    fi
fi

# npm writes node_modules/.package-lock.json last, so its age tells whether the install is current.
# A link leads to another checkout's packages, which npm would delete there.
node_dir=tests/e2e/node
if have npm && [ ! -L "$node_dir/node_modules" ] &&
    [ ! "$node_dir/node_modules/.package-lock.json" -nt "$node_dir/package-lock.json" ]; then
    npm ci --prefix "$node_dir" --no-audit --no-fund --loglevel=error ||
        echo "npm ci failed in $node_dir: the tests that need its packages cannot run." >&2
fi

# The marker comes last, so its age tells whether the build is current.
spring_dir=tests/e2e/spring
if have mvn && have javac &&
    [ -n "$(find "$spring_dir/pom.xml" "$spring_dir/src" -newer "$spring_dir/target/.built" 2>/dev/null ||
        echo none)" ]; then
    mvn -q -B -f "$spring_dir/pom.xml" process-classes && touch "$spring_dir/target/.built" ||
        echo "mvn failed in $spring_dir: the tests of Spring's relay cannot run." >&2
fi
