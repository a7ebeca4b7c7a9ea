// Prints of how many threads each run is computed, one line each: of as many as the first argument says at most, on
// cores of which the other arguments tell how many are free, and for how many seconds: 2:1.5 1:3. A run takes 10 ms.
#include "engine/threads.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

int main(int argc, char ** argv) {
    thread_choice choice(argc > 1 ? atoi(argv[1]) : 1);
    for (int i = 2; i < argc; i++) {
        double free, seconds;
        if (sscanf(argv[i], "%lf:%lf", &free, &seconds) != 2) {
            return 1;
        }
        for (double at = 0; at < seconds; at += 0.01) {
            printf("%d\n", choice.now());
            choice.learn(0.01, 0.01 * std::min<double>(choice.now(), free));
        }
    }
    return 0;
}
