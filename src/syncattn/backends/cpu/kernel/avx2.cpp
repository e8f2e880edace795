// The kernel for AVX2 and FMA. Compiled with flags of its own: see setup.py.
#define SYNCATTN_ISA avx2
#include "backward.h"

extern const Instance instance_avx2;
const Instance instance_avx2 = avx2::instance("avx2");
