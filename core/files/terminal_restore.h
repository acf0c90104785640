// Pseudo-terminals at the restore: pairs of the tree's own, under the numbers that it knows.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "core/files/kind.h"
#include "core/files/terminal_pairs.h"
#include "ext/ext.pb.h"
#include "images/tty.pb.h"

namespace migrate {

/// tty-info.img by id, checked. Throws Corrupt.
std::map<uint32_t, img::tty_info_entry> read_terminals(const ImageSet& images);

/// The terminal of a session, and whose input it takes.
struct SessionTerminal {
  uint32_t index = 0;
  pid_t session = 0;
  pid_t group = 0;        ///< 0: none
  bool no_group = false;  ///< one that has ended, under a number that is not known
};
std::vector<SessionTerminal> session_terminals(const ImageSet& images);
/// The controlling terminals of tasks; those of their sessions, where the images do not say.
std::map<pid_t, uint32_t> controlling_terminals(const ImageSet& images);

class TerminalRestorer {
 public:
  explicit TerminalRestorer(const RestoreServices& services);
  Fd open(const UsedFile& file);
  /// All are open.
  void finish();

 private:
  const img::tty_info_entry& info_of(const img::tty_file_entry& entry) const;
  void make_pairs();
  static void fill(int master, const ext::Terminal& extra, const std::string& path);
  void give_node(uint32_t index, const img::tty_info_entry& info, const Holders& holders);
  Fd open_master(const UsedFile& file, const img::tty_info_entry& info);
  Fd open_slave_end(const UsedFile& file, const img::tty_info_entry& info);

  const RestoreServices services_;
  std::map<uint32_t, img::tty_info_entry> infos_;
  std::map<uint32_t, ext::Terminal> extras_;  ///< by number
  TerminalPairs own_;                         ///< where nobody needs them earlier
  TerminalPairs& pairs_;
  bool made_ = false;
  std::map<uint32_t, Fd> hung_up_;        ///< by file id
  std::map<uint32_t, uint32_t> masters_;  ///< opened ones: info ids by number
  std::set<uint32_t> slaves_;             ///< numbers of those of which something was opened
};

}  // namespace migrate
