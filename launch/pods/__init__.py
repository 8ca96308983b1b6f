"""TPU pods on Google Cloud: rent one, set it up, train on it, follow it, give it back.

`python -m launch.pods` is the command; docs/launch.md tells how a run goes. From the bottom up:

  machines     what a slice is made of and costs
  xla_flags    what the compiler and libtpu are told, and why
  pod          what was asked for, checked
  gcloud       the commands of Google's command line
  host.sh      what runs on the pod's machines
  execute      runs commands, or prints them
  session      state, setup, start, status: what one can do to a pod
  babysit      keeps a run going
  kubernetes   the same run as a JobSet, or through xpk
  settings     the command's flags, and what they describe
  restartable  a wrapper for schedulers that take exit status 0 for the end
"""
