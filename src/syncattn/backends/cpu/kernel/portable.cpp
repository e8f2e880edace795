// What the compiler's headers ask newer libraries for, asked of older ones: the library then needs nothing that a
// Linux of 2018 lacks (glibc 2.28, libstdc++ of GCC 8), whatever it is built on. The linker sends calls of `x` here,
// to `__wrap_x` (--wrap, see setup.py), on Linux alone.
#include <new>

#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver syncattn_oldest_exp, exp@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver syncattn_oldest_exp, exp@GLIBC_2.17");
#else
#define syncattn_oldest_exp __real_exp
#endif

#if defined(__linux__)
extern "C" {
double syncattn_oldest_exp(double x);

// exp of glibc 2.29 differs in how it reports an overflow, which nobody asks here.
__attribute__((visibility("hidden"))) double __wrap_exp(double x) { return syncattn_oldest_exp(x); }

// std::__throw_bad_array_new_length(), of GCC 11's library.
__attribute__((visibility("hidden"), noreturn)) void __wrap__ZSt28__throw_bad_array_new_lengthv() {
    throw std::bad_array_new_length();
}
}
#endif
