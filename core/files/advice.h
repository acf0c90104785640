// Which options the command at hand has: a refusal advises no others.
#pragma once

namespace migrate {

/// All of --ext-unix-sk, --link-remap, --file-locks and --ghost-limit (`migrate dump`), or of these what `migrate send`
/// has: the first and the last.
enum class Advice { none, sent, all };

}  // namespace migrate
