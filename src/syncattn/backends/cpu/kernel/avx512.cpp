// The kernel for AVX-512. Compiled with flags of its own: see setup.py.
#define SYNCATTN_ISA avx512
#include "backward.h"

extern const Instance instance_avx512;
const Instance instance_avx512 = avx512::instance("avx512");
