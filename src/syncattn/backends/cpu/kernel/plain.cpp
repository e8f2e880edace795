// The kernel for any machine (ARM included). Compiled with flags of its own: see setup.py.
#define SYNCATTN_ISA plain
#include "backward.h"

extern const Instance instance_plain;
const Instance instance_plain = plain::instance("plain");
