"""A Slicer CLI image small enough to be made in a moment, with everything the tests need to provoke."""

from __future__ import annotations

from tests.support.images import build_and_push_image

_ENTRY = r"""#!/bin/sh
# Relative entrypoint, as real CLI images have it: works only in the image's working directory.
case "$1" in
  --list_cli) cat list.json; exit 0 ;;
esac
cli=$1
shift
case "$1" in
  --xml) echo "noise before"; cat "$cli.xml"; echo "noise after"; exit 0 ;;
esac
exec "./$cli.sh" "$@"
"""

_LIST = '{"Toy": {"type": "python"}, "Sum": {"type": "python"}, "Choice": {"type": "python"}}'

_TOY_XML = """<?xml version="1.0" encoding="UTF-8"?>
<executable>
  <category>Toy</category><title>Toy</title><description>Does what a test asks for.</description>
  <version>1.0</version><license>Apache-2.0</license><contributor>Tests</contributor>
  <parameters>
    <label>IO</label><description>Input and output</description>
    <file><name>inputFile</name><label>Input</label><description>Any file</description>
      <channel>input</channel><index>0</index></file>
    <file fileExtensions=".txt"><name>outputFile</name><label>Output</label><description>What was seen</description>
      <channel>output</channel><index>1</index></file>
  </parameters>
  <parameters>
    <label>Behaviour</label><description>What to do</description>
    <string><name>text</name><label>Text</label><description>Copied to the output</description>
      <longflag>text</longflag><default></default></string>
    <integer><name>sleep</name><label>Sleep</label><description>Seconds</description>
      <longflag>sleep</longflag><default>0</default></integer>
    <integer><name>code</name><label>Code</label><description>Exit code</description>
      <longflag>code</longflag><default>0</default></integer>
    <integer><name>lines</name><label>Lines</label><description>Lines of log</description>
      <longflag>lines</longflag><default>0</default></integer>
    <string><name>mode</name><label>Mode</label><description>no-output, memory, ignore-term, latin1, graceful ...</description>
      <longflag>mode</longflag><default></default></string>
  </parameters>
</executable>
"""

_TOY = r"""#!/bin/sh
# Toy [--text T] [--sleep S] [--code C] [--lines N] [--mode M] INPUT OUTPUT
text= sleep=0 code=0 lines=0 mode=
while [ $# -gt 2 ]; do
  case "$1" in
    --text) text=$2 ;;
    --sleep) sleep=$2 ;;
    --code) code=$2 ;;
    --lines) lines=$2 ;;
    --mode) mode=$2 ;;
  esac
  shift 2
done
echo "toy starts in $(pwd) on $(uname -n) as pid $$"
echo "to stderr" >&2
[ "$mode" = ignore-term ] && trap '' TERM
half=$2
[ "$mode" = graceful ] && trap 'echo "half an output" > "$half"; exit 0' TERM
if [ "$mode" = memory ]; then
  tail -c 2000000000 /dev/zero | tail > /dev/null
fi
[ "$mode" = latin1 ] && printf 'caf\351 and \303\251\n'
# In one line, so many megabytes.
[ "$mode" = line ] && head -c "${lines}000000" /dev/zero | tr '\0' x && echo && lines=0
i=0
while [ $i -lt "$lines" ]; do
  i=$((i + 1))
  echo "line $i"
done
i=0
while [ $i -lt "$sleep" ]; do
  printf '<filter-start><filter-name>Toy</filter-name></filter-start>\n'
  printf '<filter-progress>0.%s</filter-progress>\n' $((i % 10))
  i=$((i + 1))
  echo "second $i"
  [ "$mode" = clock ] && read -r up _ < /proc/uptime && echo "written at $up"
  sleep 1
done
if [ "$mode" = big ]; then
  head -c 100000000 /dev/zero > "$2"
elif [ "$mode" = hide ]; then
  ln -s "$text" "$2"
  chmod 0300 "$(dirname "$2")"
elif [ "$mode" = unreadable ]; then
  echo x > "$2"
  chmod 000 "$2"
elif [ "$mode" = escape ]; then
  ln -s /etc/hostname "$2"
elif [ "$mode" != no-output ]; then
  { printf 'text=<%s>\n' "$text"; printf 'input='; cat "$1"; } > "$2"
fi
echo "toy ends"
exit "$code"
"""

_SUM_XML = """<?xml version="1.0" encoding="UTF-8"?>
<executable>
  <category>Toy</category><title>Sum</title><description>Two inputs and a directory of outputs.</description>
  <version>1.0</version><license>Apache-2.0</license><contributor>Tests</contributor>
  <parameters>
    <label>IO</label><description>Input and output</description>
    <file><name>first</name><label>First</label><description>One</description><channel>input</channel><index>0</index></file>
    <file><name>second</name><label>Second</label><description>Two</description><channel>input</channel><index>1</index></file>
    <directory><name>outputDir</name><label>Output</label><description>Parts</description>
      <channel>output</channel><index>2</index></directory>
    <integer><name>count</name><label>Count</label><description>More files</description>
      <longflag>count</longflag><default>0</default></integer>
  </parameters>
</executable>
"""

_SUM = r"""#!/bin/sh
# Sum [--count N] FIRST SECOND DIRECTORY
count=0
[ "$1" = --count ] && count=$2 && shift 2
mkdir -p "$3/deep"
cat "$1" "$2" > "$3/both.txt"
cat "$1" > "$3/deep/first.txt"
printf '' > "$3/empty.txt"
i=0
while [ $i -lt "$count" ]; do
  i=$((i + 1))
  echo "part $i" > "$3/part-$i.txt"
done
"""

_CHOICE_XML = """<?xml version="1.0" encoding="UTF-8"?>
<executable>
  <category>Toy</category><title>Choice</title><description>Lists the values of a parameter.</description>
  <version>1.0</version><license>Apache-2.0</license><contributor>Tests</contributor>
  <parameters>
    <label>All</label><description>All</description>
    <string datalist='{"enumerate": "true"}'><name>choice</name><label>Choice</label>
      <description>One of some</description><longflag>choice</longflag><default></default></string>
    <string><name>enumerate</name><label>Enumerate</label><description>List them</description>
      <longflag>enumerate</longflag><default>false</default></string>
  </parameters>
</executable>
"""

_CHOICE = r"""#!/bin/sh
case "$*" in *"--enumerate true"*) echo '<element>red</element>'; echo '<element>blue</element>' ;; esac
echo "on $(hostname)" >&2
"""


FILES = {
    "opt/toy/entry.sh": _ENTRY,
    "opt/toy/list.json": _LIST,
    "opt/toy/Toy.xml": _TOY_XML,
    "opt/toy/Toy.sh": _TOY,
    "opt/toy/Sum.xml": _SUM_XML,
    "opt/toy/Sum.sh": _SUM,
    "opt/toy/Choice.xml": _CHOICE_XML,
    "opt/toy/Choice.sh": _CHOICE,
}
"""What is in the toy image."""

ENTRYPOINT, WORKDIR = ["./entry.sh"], "/opt/toy"


def push_toy_cli(registry: str, name: str = "tests/toy:1", *, labels: dict[str, str] | None = None) -> str:
    """The reference of the toy image, freshly pushed."""
    return build_and_push_image(
        registry,
        name,
        FILES,
        entrypoint=ENTRYPOINT,
        workdir=WORKDIR,
        labels={"description": "toy", "org.example.kind": "test", **(labels or {})},
    )
