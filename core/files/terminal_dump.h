// Pseudo-terminals at the dump: both ends are the tree's, or it is refused.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "core/files/open_file.h"
#include "ext/ext.pb.h"
#include "images/tty.pb.h"

namespace migrate {

class RegularDumper;

inline constexpr char kTerminalsImage[] = "migrate-terminals.img";
inline constexpr uint32_t kTerminalsMagic = 0x4d494754;
inline constexpr char kControllingImage[] = "migrate-ctty.img";
inline constexpr uint32_t kControllingMagic = 0x4d494743;

/// What a descriptor of a pseudo-terminal is; by the device that was opened.
enum class TerminalEnd { master, slave, controlling };
/// nullopt for other files.
std::optional<TerminalEnd> terminal_end(const OpenFile& file);
/// "task 42 has fd 7, the terminal /dev/pts/3"
std::string terminal_name(const OpenFile& file);
/// Refusal for a slave whose master is not the tree's. `holder`: who has it, if that is known.
Refusal master_is_outside(const std::string& name, const std::string& holder, const FileDumpOptions& options);
Refusal output_is_stopped(const std::string& name);
/// Number of the terminal; nullopt: it is hung up. Throws Refusal for what cannot be carried whatever comes.
std::optional<uint32_t> terminal_index(const OpenFile& file, TerminalEnd end);
/// Of /dev/pts/INDEX as `task` sees it; nullopt: it does not.
std::optional<struct statx> slave_node(const ProcDir& task, uint32_t index);

class TerminalDumper {
 public:
  explicit TerminalDumper(DumpContext& context) : context_(context) {}
  void dump(const OpenFile& file, TerminalEnd end);
  /// All were seen.
  void finish();

 private:
  struct End {
    std::string name;
    const ProcDir* proc = nullptr;
    Fd fd;
    struct statx st {};
  };
  uint32_t add_path(const OpenFile& file);
  uint32_t add_hung_up(const OpenFile& file);
  void check_pair(uint32_t index, const End& slave) const;
  void describe_queue(const End& master, bool locked, ext::Terminal& extra);
  void describe(uint32_t index, const End& master);
  void emit_info(const img::tty_info_entry& info);

  DumpContext& context_;
  std::map<uint32_t, End> masters_, slaves_, controlling_;
  uint32_t hung_up_ = 0;
};

}  // namespace migrate
