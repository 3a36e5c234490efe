package packaging

import (
	"encoding/json"
	"fmt"
)

// PolkitRule is a rule for polkit by which the user understudy may start, stop and
// kill these units, stop those of understudy itself, which a node does that is
// removed, and start Consul, whose certificate may have expired. Anything else that manage-units allows is refused. Names are whole, with
// ".service".
func PolkitRule(units []string) (string, error) {
	may := map[string][]string{}
	for _, u := range Daemons() {
		may[u] = []string{"stop"}
	}
	may["understudy-consul.service"] = []string{"start", "stop"}
	for _, u := range units {
		may[u] = []string{"start", "stop", "kill"}
	}
	text, err := json.MarshalIndent(may, "  ", "  ")
	if err != nil {
		return "", fmt.Errorf("write polkit rule: %w", err)
	}
	return fmt.Sprintf(rule, text), nil
}

const rule = `// Written by "understudy permit" whenever handler-runner starts; changes are lost.
// The units are those of understudy.yaml.
polkit.addRule(function(action, subject) {
  if (action.id !== "org.freedesktop.systemd1.manage-units" || subject.user !== "understudy")
    return polkit.Result.NOT_HANDLED;
  var may = %s;
  var verbs = may[action.lookup("unit")] || [];
  return verbs.indexOf(action.lookup("verb")) >= 0 ? polkit.Result.YES : polkit.Result.NO;
});
`
