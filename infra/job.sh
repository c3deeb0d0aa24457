#!/bin/sh
# The entry point of a cluster's job: runs a command and says whether starting over could help.
#
# `ray job submit` turns every exit code but 0 into 1, and a RayJob with a backoffLimit answers that with another
# cluster. A run that ended for good (2: configuration; 3: too many failed rows or bytes not accounted for; 4: stopped,
# where the same command would not resume) would only end so again, on GPUs that are paid for: it counts as done here,
# its code is the last line of the log, and `diffseg verify` tells the truth about the output. Whatever else
# happened (a cluster that lost its head, storage that was away) is worth another attempt.
set -u

notes=$(mktemp -d)
trap 'rm -r "$notes"' EXIT
export DIFFSEG_RESUMES="$notes/yes" # made by a command that stopped where the same one would go on
"$@" &
child=$!
trap 'kill -TERM $child 2>/dev/null' TERM INT
wait $child
code=$?
if kill -0 $child 2>/dev/null; then # a signal ended the wait, not the command
  wait $child
  code=$?
fi
echo "diffseg: exit code $code" >&2
[ $code = 4 ] && [ -e "$DIFFSEG_RESUMES" ] && exit 4
case $code in
  2 | 3 | 4) exit 0 ;;
  *) exit $code ;;
esac
