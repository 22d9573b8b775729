"""One bad settings file or environment for each mistake, and the exact message that it gets."""

from cgm_proxy.settings.schema import MASK

BASE_URL = "write an http or https URL with a host and a plain path, without user, query, fragment or %-escapes"
VALKEY_URL = (
    "has a value that can't be used (not shown: it is a secret); write a URL such as redis://USER:PASSWORD@HOST:6379/0,"
    " unix://:PASSWORD@/PATH?db=0, or rediss://HOST for TLS, which takes the options ssl_ca_certs, ssl_certfile and"
    " ssl_keyfile; write special characters of the password as %-escapes"
)
SYNTAX = "write lines of `key: value`, and quote text with special characters"
ALLOW = "write one or more of Observation, DiagnosticReport, Device, as a list (in a variable: separated by commas)"
BAD_FILES = [
    # not a settings file
    ("mode: [", f"s.yaml, line 2: not valid YAML: did not find expected node content; {SYNTAX}"),
    ("mode: observe\n---\nmode: enforce\n", "s.yaml, line 2: not valid YAML: a second document begins here; keep one"),
    ("upstream:\n  token: *s3cr3t\n", f"s.yaml, line 2: not valid YAML: found undefined alias …; {SYNTAX}"),
    (
        "mode: \x07",
        f"s.yaml, line 1: not valid YAML: a character that YAML does not allow, or a byte that is no UTF-8; {SYNTAX}",
    ),
    (b"mode: \xff", "settings: s.yaml is not UTF-8 text; save it as UTF-8"),
    ("- mode", "s.yaml, line 1: the file has no keys; write lines of `key: value`"),
    ("observe", "s.yaml, line 1: the file has no keys; write lines of `key: value`"),
    ("? [mode]\n: observe", "s.yaml, line 1: a key must be text, not a list or mapping"),
    ("[" * 3000, f"s.yaml, line 1: not valid YAML: nested deeper than 8; {SYNTAX}"),
    # keys
    ("mood: observe", 's.yaml, line 1: unknown key "mood"; did you mean "mode"?'),
    ("\nupstrem:\n  url: x", 's.yaml, line 2: unknown key "upstrem"; did you mean "upstream"?'),
    ("upstream:\n  ulr: http://h/fhir", 's.yaml, line 2: unknown key "upstream.ulr"; did you mean "upstream.url"?'),
    ("port: 8080", 's.yaml, line 1: unknown key "port"; did you mean "listen.port"?'),
    ("listen:\n  chunk: 1", 's.yaml, line 2: unknown key "listen.chunk"; did you mean "forward.chunk"?'),
    (
        "forward: {zzz: 1}",
        's.yaml, line 1: unknown key "forward.zzz"; known are forward.beside, forward.chunk or forward.concurrency',
    ),
    (
        "zzz: 1",
        (
            's.yaml, line 1: unknown key "zzz"; known are allow, cache, detection, forward, jobs, limits, listen,'
            " log_level, mode, policies, rules or upstream"
        ),
    ),
    ("upstream: http://h/fhir", 's.yaml, line 1: section "upstream" has no keys; write lines of `key: value`'),
    (
        "mode: observe\nmode: enforce",
        "s.yaml, line 2: mode: the key `mode` is repeated (first on line 1); keep one",
    ),
    (
        "listen: {port: 1}\nlisten: {port: 2}",
        "s.yaml, line 2: listen: the key `listen` is repeated (first on line 1); keep one",
    ),
    (
        "listen: {port: 1}\nlisten.port: 2",
        "s.yaml, line 2: listen.port is repeated (first: s.yaml, line 1); keep one",
    ),
    # kinds
    ("listen: {port: '8080'}", 's.yaml, line 1: listen.port is "8080"; write a whole number from 0 to 65535'),
    ("listen: {port: 80.5}", "s.yaml, line 1: listen.port is 80.5; write a whole number from 0 to 65535"),
    ("listen: {port: true}", "s.yaml, line 1: listen.port is true; write a whole number from 0 to 65535"),
    ("listen: {port: }", "s.yaml, line 1: listen.port is empty; write a whole number from 0 to 65535"),
    ("listen: {port: [1]}", "s.yaml, line 1: listen.port is [1]; write a whole number from 0 to 65535"),
    ("limits: {seconds: soon}", 's.yaml, line 1: limits.seconds is "soon"; write a number from 1 to 86400'),
    ("mode: on", "s.yaml, line 1: mode is true; write enforce or observe"),
    ("rules: [a]", 's.yaml, line 1: rules is ["a"]; write the path of a directory'),
    ("rules: {a: b}", 's.yaml, line 1: rules is {"a": "b"}; write the path of a directory'),
    ("rules: !dir x", "s.yaml, line 1: rules: the tag `!dir` is not supported; leave it out"),
    ("allow: Observation", f's.yaml, line 1: allow is "Observation"; {ALLOW}'),
    ("allow: []", f"s.yaml, line 1: allow is []; {ALLOW}"),
    ("allow: [1]", f"s.yaml, line 1: allow is [1]; {ALLOW}"),
    # choices, ranges, forms
    ("mode: obsrve", 's.yaml, line 1: mode is "obsrve"; write enforce or observe'),
    ("policies: {no_order: deny}", 's.yaml, line 1: policies.no_order is "deny"; write accept, warn or reject'),
    ("listen: {port: 65536}", "s.yaml, line 1: listen.port is 65536; write a whole number from 0 to 65535"),
    ("forward: {chunk: 0}", "s.yaml, line 1: forward.chunk is 0; write a whole number from 1 to 10000"),
    ("limits: {seconds: .nan}", "s.yaml, line 1: limits.seconds is NaN; write a number from 1 to 86400"),
    ("limits: {seconds: .inf}", "s.yaml, line 1: limits.seconds is Infinity; write a number from 1 to 86400"),
    ("allow: [observation]", f's.yaml, line 1: allow is ["observation"]; {ALLOW}'),
    (
        "listen: {host: 'http://h'}",
        's.yaml, line 1: listen.host is "http://h"; write a host name or IP address, without scheme, port or brackets',
    ),
    (f"mode: {'x' * 200}", f's.yaml, line 1: mode is "{"x" * 59}…; write enforce or observe'),
    # URLs
    ("upstream: {url: ftp://h/fhir}", f's.yaml, line 1: upstream.url is "ftp://h/fhir"; {BASE_URL}'),
    ("upstream: {url: h/fhir}", f's.yaml, line 1: upstream.url is "h/fhir"; {BASE_URL}'),
    ("upstream: {url: 'http:///fhir'}", f's.yaml, line 1: upstream.url is "http:///fhir"; {BASE_URL}'),
    ("upstream: {url: 'http://h:0/fhir'}", f's.yaml, line 1: upstream.url is "http://h:0/fhir"; {BASE_URL}'),
    ("upstream: {url: 'http://h:70000/fhir'}", f's.yaml, line 1: upstream.url is "http://h:70000/fhir"; {BASE_URL}'),
    ("upstream: {url: 'http://h/a//b'}", f's.yaml, line 1: upstream.url is "http://h/a//b"; {BASE_URL}'),
    ("upstream: {url: 'http://h/a/../b'}", f's.yaml, line 1: upstream.url is "http://h/a/../b"; {BASE_URL}'),
    ("upstream: {url: 'http://h/%2e'}", f's.yaml, line 1: upstream.url is "http://h/%2e"; {BASE_URL}'),
    ("upstream: {url: 'http://h/fhir '}", f's.yaml, line 1: upstream.url is "http://h/fhir "; {BASE_URL}'),
    (
        "upstream: {url: 'http://me:s3cr3t@h/fhir'}",
        f's.yaml, line 1: upstream.url is "http://***@h/fhir"; {BASE_URL}',
    ),
    ("upstream: {url: 'http://h/fhir?key=s3cr3t'}", f's.yaml, line 1: upstream.url is "http://h/fhir?***"; {BASE_URL}'),
    ("upstream: {url: 'http://h/fhir#s3cr3t'}", f's.yaml, line 1: upstream.url is "http://h/fhir#***"; {BASE_URL}'),
    # secrets
    (
        "upstream: {token: Bearer s3cr3t}",
        (
            "s.yaml, line 1: upstream.token has a value that can't be used (not shown: it is a secret);"
            ' write the token alone, without "Bearer", spaces or line breaks'
        ),
    ),
    (
        "upstream: {token: [s3cr3t]}",
        (
            "s.yaml, line 1: upstream.token has a value that can't be used (not shown: it is a secret);"
            ' write the token alone, without "Bearer", spaces or line breaks'
        ),
    ),
    ("upstream: {token: !s3cr3t a}", "s.yaml, line 1: upstream.token: the tag … is not supported; leave it out"),
    ("upstream: {token: !!int s3cr3t}", "s.yaml, line 1: upstream.token: not a value of the tag …"),
    ('upstream: {token: !!int "s3cr3t\\ns3cr3t"}', "s.yaml, line 1: upstream.token: not a value of the tag …"),
    (
        f"upstream: {{token: '{MASK}'}}",
        "s.yaml, line 1: upstream.token is the mask that is printed for a secret; write the secret",
    ),
    *(
        (f"cache: {{shared: '{url}'}}", f"s.yaml, line 1: cache.shared {VALKEY_URL}")
        for url in (
            "valkey:6379",
            "http://valkey:6379",
            "redis://",
            "redis:/valkey",
            "redis://s3cr3t@",
            "redis://:s3cr3t@valkey:70000",
            "redis://:s3cr3t@valkey:0",
            "redis://:s3cr3t@@valkey",
            "redis://:s3cr3t@valkey/a",
            "redis://valkey?socket_timeout=99",
            "redis://valkey?ssl_ca_certs=s.yaml",
            "rediss://valkey?ssl_cert_reqs=none",
            "rediss://valkey?ssl_ca_certs=s.yaml&ssl_check_hostname=false",
            "rediss://valkey#s3cr3t",
            "unix://run/valkey.sock",
            "unix:///run/valkey.sock?ssl_ca_certs=s.yaml",
            "redis://one,redis://other",
        )
    ),
    # settings that disagree, with one another or with the machine
    (
        "cache: {shared: 'rediss://:s3cr3t@valkey?ssl_ca_certs=none.pem'}",
        ("s.yaml, line 1: cache.shared names a file that can't be read; correct its ssl_ options, or remove them"),
    ),
    (
        "rules: none",
        "s.yaml, line 1: rules names no directory that can be read; correct the path, or remove the setting",
    ),
    (
        "rules: s.yaml",
        "s.yaml, line 1: rules names no directory that can be read; correct the path, or remove the setting",
    ),
    (
        "listen: {port: 9090}",
        "s.yaml, line 1: listen.ops_port equals listen.port, which would make the metrics public; choose another port",
    ),
    (
        "limits:\n  atomic_entries: 600\n  entries: 500",
        (
            "s.yaml, line 2; s.yaml, line 3: limits.atomic_entries is above limits.entries and would never be reached;"
            " lower it"
        ),
    ),
    (
        "limits: {seconds: 30}",
        "s.yaml, line 1: upstream.read_timeout is above limits.seconds and would never be reached; lower it",
    ),
    (
        "jobs: {path: /v/jobs, waiting_bytes: 2048}",
        (
            "s.yaml, line 1: jobs.waiting_bytes is below limits.body_bytes, so that the largest submission would always be"
            " refused; raise it"
        ),
    ),
    (
        "jobs: {peers: 'http://{replica}:8080/fhir'}",
        "s.yaml, line 1: jobs.peers needs jobs.replica, which tells this replica's jobs from those of others; set it",
    ),
    (
        "jobs: {replica: Proxy}",
        (
            's.yaml, line 1: jobs.replica is "Proxy"; write a name of lowercase letters, digits and hyphens that ends in a'
            " number, such as cgm-proxy-0"
        ),
    ),
    (
        "jobs: {replica: p-0, peers: 'http://p/{replica}'}",
        (
            's.yaml, line 1: jobs.peers is "http://p/{replica}"; write an http or https URL with {replica} in its host or'
            " port, and a plain path"
        ),
    ),
    ("jobs: {path: '', kept_seconds: 0}", "s.yaml, line 1: jobs.kept_seconds is 0; write a number from 1 to 31536000"),
    (
        "upstream: {url: 'http://localhost:8080/r4'}",
        "s.yaml, line 1: upstream.url leads back to the proxy itself; write the URL of the FHIR server behind it",
    ),
    (
        "upstream: {url: 'http://Fhir.example.org/r4/hapi'}\nlisten: {public_url: 'http://fhir.example.org/r4'}",
        (
            "s.yaml, line 1; s.yaml, line 2: upstream.url leads back to the proxy itself; write the URL of the FHIR"
            " server behind it"
        ),
    ),
]

BAD_ENVIRONMENTS = [
    ({"CGM_PROXY_MODE": "obsrve"}, 'CGM_PROXY_MODE: mode is "obsrve"; write enforce or observe'),
    (
        {"CGM_PROXY_LISTEN_PORT": "http"},
        'CGM_PROXY_LISTEN_PORT: listen.port is "http"; write a whole number from 0 to 65535',
    ),
    ({"CGM_PROXY_LISTEN_PORT": ""}, 'CGM_PROXY_LISTEN_PORT: listen.port is ""; write a whole number from 0 to 65535'),
    (
        {"CGM_PROXY_LISTEN_PORT": "9" * 5000},
        f'CGM_PROXY_LISTEN_PORT: listen.port is "{"9" * 59}…; write a whole number from 0 to 65535',
    ),
    (
        {"CGM_PROXY_LIMITS_SECONDS": "nan"},
        'CGM_PROXY_LIMITS_SECONDS: limits.seconds is "nan"; write a number from 1 to 86400',
    ),
    ({"CGM_PROXY_ALLOW": ""}, f'CGM_PROXY_ALLOW: allow is ""; {ALLOW}'),
    (
        {"CGM_PROXY_UPSTREAM_ULR": "x"},
        'CGM_PROXY_UPSTREAM_ULR: unknown variable; did you mean "CGM_PROXY_UPSTREAM_URL"?',
    ),
    ({"cgm_proxy_mode": "observe"}, 'cgm_proxy_mode: unknown variable; did you mean "CGM_PROXY_MODE"?'),
    ({"CGM_PROXY_SETTING": "x"}, 'CGM_PROXY_SETTING: unknown variable; did you mean "CGM_PROXY_SETTINGS"?'),
    ({"CGM_PROXY_MODE_FILE": "x"}, 'CGM_PROXY_MODE_FILE: unknown variable; did you mean "CGM_PROXY_MODE"?'),
    ({"CGM_PROXY_7": "x"}, "CGM_PROXY_7: unknown variable; docs/settings.md lists all names"),
    (
        {"CGM_PROXY_PORT_8080_TCP": "tcp://10.0.0.1:8080"},
        (
            "CGM_PROXY_PORT_8080_TCP: Kubernetes sets this variable for a Service, and it is no setting;"
            " set enableServiceLinks: false in the pod"
        ),
    ),
    (
        {"CGM_PROXY_SETTINGS": "none.yaml"},
        "settings: can't read none.yaml: no such file or directory; name a readable file",
    ),
    ({"CGM_PROXY_SETTINGS": "."}, "settings: can't read .: is a directory; name a readable file"),
    (
        {"CGM_PROXY_UPSTREAM_TOKEN_FILE": "none"},
        "CGM_PROXY_UPSTREAM_TOKEN_FILE: can't read none: no such file or directory; name a readable file",
    ),
    (
        {"CGM_PROXY_UPSTREAM_TOKEN_FILE": "blank"},
        "CGM_PROXY_UPSTREAM_TOKEN_FILE: blank is empty; write the secret into it, or unset the variable",
    ),
    (
        {"CGM_PROXY_UPSTREAM_TOKEN_FILE": "two-lines"},
        (
            "CGM_PROXY_UPSTREAM_TOKEN_FILE: upstream.token has a value that can't be used (not shown: it is a secret);"
            ' write the token alone, without "Bearer", spaces or line breaks'
        ),
    ),
    (
        {"CGM_PROXY_UPSTREAM_TOKEN_FILE": "two-lines", "CGM_PROXY_UPSTREAM_TOKEN": "s3cr3t"},
        "CGM_PROXY_UPSTREAM_TOKEN_FILE: CGM_PROXY_UPSTREAM_TOKEN is set too; keep one of the two",
    ),
    (
        {"CGM_PROXY_LISTEN_PORT": "9001", "CGM_PROXY_LISTEN_OPS_PORT": "9001"},
        (
            "CGM_PROXY_LISTEN_OPS_PORT; CGM_PROXY_LISTEN_PORT: listen.ops_port equals listen.port, which would make the"
            " metrics public; choose another port"
        ),
    ),
]
