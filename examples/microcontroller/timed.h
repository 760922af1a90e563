/* Included before self_test.c: measures each call of the policy. */
#include <stdint.h>
void measure_start(void);
void measure_stop(void);
#define TIMED(call) do { measure_start(); call; measure_stop(); } while (0)
