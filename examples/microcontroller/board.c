/* What self_test.c needs on a Cortex-M without an operating system: start, output by semihosting, and the measurement of each call
   (instructions by the system timer, which QEMU's -icount ties to them, and stack by a painted area). */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#define SYSTICK ((volatile uint32_t *)0xe000e010)
#define PAINT 0xa5a5a5a5u
#define DEEP 4096

extern uint32_t stack_top;
int main(void);
void reset(void);

__attribute__((section(".vectors"), used)) static const void *const vectors[] = {&stack_top, (const void *)reset};
static uint32_t ticks, calls, deepest, started;
static uint32_t *bottom;

void *memcpy(void *to, const void *from, size_t count)
{
    char *next = to;
    const char *given = from;
    while (count--) *next++ = *given++;
    return to;
}

void *memset(void *to, int value, size_t count)
{
    char *next = to;
    while (count--) *next++ = (char)value;
    return to;
}

static void semihosting(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm("r0") = operation;
    register const void *r1 __asm("r1") = argument;
    __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void put(char one)
{
    semihosting(0x03, &one);
}

static void put_number(uint32_t value, uint32_t base, int width)
{
    char digits[12];
    int count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value || count < width);
    while (count) put(digits[--count]);
}

/* %d and %08lx, which the self-test uses */
int printf(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') put(*format);
        else if (*++format == 'd') put_number(va_arg(arguments, uint32_t), 10, 1);
        else {
            format += 3;
            put_number(va_arg(arguments, uint32_t), 16, 8);
        }
    }
    va_end(arguments);
    return 0;
}

__attribute__((noinline)) void measure_start(void)
{
    uint32_t *top = __builtin_frame_address(0);
    bottom = top - DEEP / 4;
    for (uint32_t *place = bottom; place < top - 16; place++) *place = PAINT;
    started = SYSTICK[2];
}

__attribute__((noinline)) void measure_stop(void)
{
    uint32_t stopped = SYSTICK[2];
    uint32_t *place = bottom;
    while (*place == PAINT) place++;
    uint32_t depth = DEEP - 4 * (uint32_t)(place - bottom);
    deepest = depth > deepest ? depth : deepest;
    ticks += (started - stopped) & 0xffffffu;
    calls++;
}

static uint32_t loop_of(uint32_t count)
{
    uint32_t before = SYSTICK[2];
    __asm volatile("1: sub %0, %0, #1\n cmp %0, #0\n bne 1b" : "+l"(count) : : "cc");
    return (before - SYSTICK[2]) & 0xffffffu;
}

void reset(void)
{
#ifdef __ARM_FP
    *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20;
    __asm volatile("dsb\n isb");
#endif
    SYSTICK[1] = 0xffffff;
    SYSTICK[2] = 0;
    SYSTICK[0] = 5;
    uint32_t ticks_of_1000 = loop_of(2000) - loop_of(1000); /* 3000 instructions */
    measure_start();
    measure_stop();
    uint32_t empty = ticks;
    ticks = calls = deepest = 0;
    int wrong = main();
    /* two calls for each decision */
    uint32_t tenths = (uint32_t)((uint64_t)(ticks - calls * empty) * 3000 * 10 / ticks_of_1000 / (calls / 2));
    printf("instructions %d stack %d\n", tenths / 10, deepest);
    semihosting(0x18, (const void *)(wrong ? 0x20023 : 0x20026));
    for (;;) { }
}
