// Appends a line "EPOCH NUMBER TIME" every millisecond to the O_APPEND file `sequence`: two running copies show as a
// repeated number, a restart of an old state as a number that goes back. TIME is CLOCK_REALTIME in ns, EPOCH the number
// of the time namespace the writer sees itself in, which differs between hosts.
#include <string>

#include "workload.h"

using namespace workload;

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int out = must(open(w.path("sequence").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666), "open");
        uint64_t number = 0;
        const auto append = [&] {
          struct stat st {};
          if (stat("/proc/self/ns/time", &st) == -1) st.st_ino = 0;
          char line[96];
          const uint64_t next = number + 1;
          const int n =
              std::snprintf(line, sizeof line, "%llu %llu %lld\n", static_cast<unsigned long long>(st.st_ino),
                            static_cast<unsigned long long>(next), static_cast<long long>(now_ns(CLOCK_REALTIME)));
          expect(write(out, line, static_cast<size_t>(n)) == n, "append failed");
          number = next;
        };
        uint64_t verified = 0;
        std::string failure;
        const auto verify = [&] {
          expect(failure.empty(), failure);
          expect(number > verified, "nothing was appended since the last check");
          verified = number;
        };
        append();
        w.serve(verify, [&] {
          try {
            append();
          } catch (const std::exception& e) {
            failure = e.what();
          }
          sleep_ms(1);
        });
      },
      argv[0]);
}
