"""Do templates give what docker's do? Each answer was measured with docker 28.2's `--format`, but for the errors."""

from __future__ import annotations

import json
import random
import time

import pytest

from overlayfs_demo.errors import printable
from overlayfs_demo.ui.go_template import Template
from overlayfs_demo.ui.go_template_error import TemplateError
from overlayfs_demo.ui.go_values import NIL_LIST, NIL_MAP, Row

IMAGE: dict[str, object] = {
    "Id": "sha256:1fd6",
    "Os": "linux",
    "Size": 2289696,
    "Author": "",
    "RootFS": {"Layers": ["sha256:b7", "sha256:61"]},
    "Config": {
        "Env": ["PATH=/bin", "HOME=/root"],
        "Cmd": ["a && b"],
        "Entrypoint": NIL_LIST,
        "Volumes": NIL_MAP,
        "Labels": {"b": "2", "a.b": "1"},
        "WorkingDir": "/app",
    },
    "State": {"Running": False, "Pid": 0},
    "Null": None,
    "Label": lambda name: {"b": "2"}.get(name, ""),
}

SAME_AS_DOCKER = {
    # values
    "{{.Id}}": "sha256:1fd6",
    "{{.Config.Env}} {{.State.Running}} {{.State.Pid}}": "[PATH=/bin HOME=/root] false 0",
    "{{.Config.Labels}} {{.Config.Volumes}} {{.Config.Entrypoint}}": "map[a.b:1 b:2] map[] []",
    "{{json .Config.Entrypoint}} {{json .Config.Cmd}} {{json .State}}": 'null ["a && b"] {"Running":false,"Pid":0}',
    "{{.Null}}": "<no value>",
    '{{1.5}} {{1000000000}} {{true}} {{"q\\"\\t"}} {{`raw`}}': '1.5 1000000000 true q"\t raw',
    # blocks
    "{{range .RootFS.Layers}}{{println .}}{{else}}none{{end}}": "sha256:b7\nsha256:61\n",
    "{{range .Config.Entrypoint}}x{{else}}none{{end}}": "none",
    "{{range $i, $l := .RootFS.Layers}}{{$i}}={{$l}} {{end}}": "0=sha256:b7 1=sha256:61 ",
    "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}} {{end}}": "a.b=1 b=2 ",
    "{{range 3}}{{.}}{{end}}": "012",
    "{{range $x := .Config.Entrypoint}}x{{else}}{{len $x}}{{end}}": "0",
    "{{with .Config}}{{.WorkingDir}}{{end}}{{with .Author}}x{{else}}no author{{end}}": "/appno author",
    '{{if and .Os (eq .Os "linux")}}L{{else if true}}B{{else}}C{{end}}': "L",
    '{{if eq .Os "x"}}A{{else if eq .Os "linux"}}B{{else}}C{{end}}!': "B!",
    # trimming and comments
    "{{ .Os -}}   x   {{- .Os }} {{/* c */}} {{- /* c */ -}} z": "linuxxlinux z",
    # variables
    '{{$x := .Os}}{{$x}} {{$.Os}} {{range .RootFS.Layers}}{{$x = "y"}}{{end}}{{$x}}': "linux linux y",
    # functions
    '{{.Os | upper | printf "%s-%s" "a"}} {{"a" | eq "a"}}': "a-LINUX true",
    '{{eq .Os "a" "linux"}} {{ne .Os "x"}} {{not .Os}} {{or "" "z"}} {{and "a" ""}}|': "true true false z |",
    '{{lt 1 2}} {{gt "b" "a"}} {{le 1 1}} {{ge 1 2}}': "true true true false",
    '{{join .Config.Env ","}} {{split "a,b" ","}} {{index (split "a,b" ",") 1}}': "PATH=/bin,HOME=/root [a b] b",
    '{{index .Config.Labels "a.b"}}{{index .Config.Labels "no"}}| {{slice .Os 1 2}} {{len .Os}}': "1| i 5",
    '{{print 1 2 "a" "b" 3}} {{println .Os 1 "a"}}': "1 2ab3 linux 1 a\n",
    '{{pad .Os 2 3}}|{{truncate .Os 4}}|{{title "abc def"}}|{{lower "ABC"}}': "  linux   |linu|Abc Def|abc",
    '{{html "<"}}|{{urlquery "a b"}}': "&lt;|a+b",
    '{{.Label "b"}}': "2",
    # printf
    '{{printf "%.4s|%5s|%-15s|%q|%v|%d" .Id "a" "b" .Os .Os 3}}': 'sha2|    a|b              |"linux"|linux|3',
    '{{printf "%d %5d|%-5d|%05d %x" .Size 3 4 5 255}}': "2289696     3|4    |00005 ff",
    '{{printf "%v %s %q %t %T" .Config.Env .Config.Env .Config.Env true "a"}}': "[PATH=/bin HOME=/root] "
    '[PATH=/bin HOME=/root] ["PATH=/bin" "HOME=/root"] true string',
    '{{printf "%s" 3}} {{printf "%d" "a"}} {{printf "%s"}} {{printf "a" 3}} {{printf "%%"}}': "%!s(int=3) "
    "%!d(string=a) %!s(MISSING) a%!(EXTRA int=3) %",
    '{{printf "%.3s|%6.2f|%v" "äöüß" 3.14159 2.5}}': "äöü|  3.14|2.5",
}


@pytest.mark.parametrize(("template", "text"), SAME_AS_DOCKER.items())
def test_templates_give_what_docker_prints(template: str, text: str) -> None:
    assert Template(template).execute(IMAGE) == text


PROBLEMS = {
    "{{.Foo}}": "there is no placeholder {{.Foo}}: use one of .Id, .Os, .Size, .Author, .RootFS, .Config",
    "{{.Config.Foo}}": "there is no placeholder {{.Foo}} in .Config: use one of .Env, .Cmd, .Entrypoint",
    "{{.Id.Foo}}": "{{.Id.Foo}}: .Id is a value of type string, which has no fields",
    "{{.Null.Foo}}": "{{.Null.Foo}}: .Null is null, which has no fields",
    "{{.Id": "unclosed action",
    "{{/* c": "unclosed comment",
    '{{"abc}}': 'unterminated string: "abc}}',
    "{{foo .Id}}": "function 'foo' is not defined: a placeholder begins with a dot; functions: and, eq",
    "{{range .Id}}x{{end}}": "{{range .Id}}: can't iterate over a value of type string",
    "{{range}}": "{{range}}: a value is missing",
    "{{}}": "{{}}: a value is missing",
    "{{if .Id}}": "{{if .Id}} has no {{end}}",
    "{{end}}": "unexpected {{end}}",
    "{{if .Os}}a{{else}}b{{else}}c{{end}}": "expected {{end}}, found {{else}}",
    "{{if .Os}}a{{else with .Os}}c{{end}}": "unexpected {{else with .Os}}",
    '{{template "x"}}': "{{template}} is not supported",
    "{{ % }}": "unexpected '%' in an action",
    "{{$y}}": "undefined variable $y",
    "{{$y = 1}}": "undefined variable $y",
    '{{.Os "a"}}': "{{.Os}} takes no arguments",
    '{{"a" .Os}}': "a value takes no arguments",
    "{{.Label}}": "{{.Label}} needs one argument",
    "{{.Label 1}}": "{{.Label}} needs one argument",
    '{{.Label "a" "b"}}': "{{.Label}} needs one argument",
    "{{(.Os}}": "unclosed left parenthesis",
    '{{.Os | "a"}}': "what follows | must be a function",
    "{{12ab}}": "bad number syntax: 12ab",
    '{{"\\z"}}': "unknown escape \\z",
    '{{eq 1 "a"}}': "error calling eq: incompatible types for comparison: int and string",
    '{{lt true "a"}}': "error calling lt: incompatible types for comparison: bool and string",
    "{{index .Config.Env 9}}": "error calling index: index out of range: 9",
    "{{upper .Size}}": "error calling upper: wrong type: expected string; got int",
    "{{upper}}": "wrong number of arguments for upper: want 1, got 0",
    "{{join .Id 1}}": "error calling join: wrong type: expected string; got int",
    "{{print and}}": "wrong number of arguments for and",
    "{{print upper}}": "wrong number of arguments for upper",
    "{{and}}": "wrong number of arguments for and",
    "{{len 3}}": "error calling len: a value of type int has no length",
    '{{printf "%99999s" .Os}}': "error calling printf: 99999 is too wide",
    "{{pad .Os 99999 1}}": "error calling pad: 99999 blanks are too many",
}


@pytest.mark.parametrize(("template", "problem"), PROBLEMS.items())
def test_errors_are_one_line_that_names_the_part(template: str, problem: str) -> None:
    with pytest.raises(TemplateError) as raised:
        Template(template).execute(IMAGE)
    assert str(raised.value).startswith("template: ") and problem in str(raised.value)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 1


HOSTILE = {
    "nested loops": "{{range $.RootFS.Layers}}" * 40 + "x" + "{{end}}" * 40,
    "literal text in a loop": "{{range 100000}}" + "x" * 60000 + "{{end}}",
    "a long loop": "{{range 1000000000000}}{{end}}",
    "doubled text": '{{$x := "aaaaaaaa"}}{{range 1000}}{{$x = print $x $x}}{{end}}{{len $x}}',
    "text in many arguments": '{{$x := "aaaaaaaa"}}{{range 18}}{{$x = print $x $x}}{{end}}{{print'
    + " $x" * 9000
    + "}}",
    "long separators": '{{$x := "aaaaaaaa"}}{{range 17}}{{$x = print $x $x}}{{end}}{{join (split $x "a") $x}}',
    "text in a list": '{{$x := "aaaa"}}{{range 19}}{{$x = print $x $x}}{{end}}{{range 9999}}{{split $x "b"}}{{end}}',
    "deep blocks": "{{if 1}}" * 4000 + "{{end}}" * 4000,
    "deep parentheses": "{{" + "(" * 20000 + "1" + ")" * 20000 + "}}",
    "long chains": "{{" + "." + "a" * 60000 + "}}",
    "many fields": "{{" + ".Config" * 9000 + "}}",
    "a long template": "x" * 70000,
}


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_hostile_template_ends_with_an_error(template: str) -> None:
    before = time.process_time()
    with pytest.raises(TemplateError):
        Template(template).execute(IMAGE)
    assert time.process_time() - before < 60


MARKS = (
    "{{ }} {{- -}} {{if {{range {{with {{else}} {{end}} else if ( ) | := = , . .. $ $x $x:= .Id .Os.x .Config .Label"
)
WORDS = "print printf index and or eq lt len join slice json nil true 1 -1 0x1f 1e999 12ab 'a' '\\n' /* */"
PIECES = (
    *MARKS.split(),
    *WORDS.split(),
    *(" ", "\n", '"', "`", '"%5d%s%!"', '"\\ud800"', '"\\xff"', "0x" + "f" * 9000, "9" * 9000, "\x1b", "é"),
)


@pytest.mark.parametrize("seed", range(20))
def test_random_template_gives_text_or_a_template_error(seed: int) -> None:
    chosen = random.Random(seed)
    for _ in range(500):
        inside = " ".join(chosen.choices(PIECES, k=chosen.randrange(1, 8)))
        template = chosen.choice((inside, f"{{{{{inside}}}}}", f"{{{{printf {inside}}}}}{{{{{inside}}}}}"))
        try:
            printable(Template(template).execute(IMAGE))
        except TemplateError as error:
            assert "\n" not in str(error), template


def test_whole_row_escapes_html_in_its_json_and_one_value_does_not() -> None:
    row = Row({"CreatedBy": "a && b", "Label": len})
    assert Template("{{json .}}").execute(row) == '{"CreatedBy":"a \\u0026\\u0026 b"}'
    assert Template("{{json .CreatedBy}}").execute(row) == '"a && b"'


def test_json_holds_no_character_that_a_terminal_acts_on() -> None:
    name = "\x1b[2J\x7f\x9b\u202e\u2028"
    text = Template("{{json .}}").execute({"Name": name})
    assert text.isprintable()
    assert json.loads(text) == {"Name": name}
