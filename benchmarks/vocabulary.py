"""The words and line templates that generated sources are made of.

In a template `%a`, `%b` and `%c` stand for identifiers, `%s` for a one-letter name, `%n` for a number, `%p`
for a word of prose.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


def _lines(text: str) -> list[str]:
    return text.split("\n")


WORDS = _words("""
abort accept access account action active adapter add address after agent alias align all allow anchor any
apply array async attach attribute author await back base batch before begin bind bit block body bool bottom
bound box branch break bridge broker bucket buffer build bundle button byte cache call callback cancel cell
chain change channel char check child chunk class clean clear client clone close code collect color column
command comment commit compare compile complete component compose config connect constant context control
convert copy count create current cursor custom data date debug decode default define delay delete depth
detail detect device diff digest direct dispatch display document domain done draw drop dump each edge edit
element emit empty enable encode end engine enter entry enum error escape event every exact execute exit
expand expect export extend extra factory fail fallback false family feature fetch field file fill filter
final find first fixed flag flat flush focus fold format forward frame from full function future gap gather
generate get global graph grid group guard handle hash head header height hidden hint history hook host icon
id ignore image import index infer inherit init inline inner input insert inspect instance int interface
internal invalid iterate item job join key kind label last layer layout lazy leaf left length level library
limit line link list load local lock log lookup loop lower main make manager map margin mark mask master
match matrix max measure member memory merge message meta method min mode model module mount move mutate
name native nested network next node normal notify null number object observe offset omit once open operator
option order origin outer output override own pack page pair panel param parent parse part patch path
pattern payload peer pending phase pipe plain plugin point policy pool port position prefix prepare previous
print private process promise property protocol provider proxy public pull push query queue range raw read
ready reason record reduce ref region register reject release remove render repeat replace report request
require reset resolve resource response rest result retry return reverse right role root route row rule run
safe sample save scale schema scope score scroll search section segment select send sequence serial server
service session set shape share shift show sign signal simple single size skip slice slot snapshot sort
source space span split stack stage start state static status step stop store stream strict string style
submit suffix sum support switch symbol sync syntax system table tag target task template temp test text
theme thread throw tick time title toggle token tool top total trace track transform transition tree trigger
trim true type undefined union unique unit unknown unlink unload unset update upper url use user valid value
variable vector verify version view visible visit wait walk watch weak weight width window with wrap write
yield zone
""")

PROSE = _words("""
the of to and a in is it you that for on are with as be this by can from or an if when which will not use
used one has have each other only should your must may also any all into more these its than then where does
no but first same given returns called instead without following example default see note available required
optional
""")

JAVASCRIPT = _lines("""\
  const %a = require('%b');
  if (%a.%b === undefined) {
    return %a.%b(%c);
  }
  }
}

function %a(%b, %c) {
  var %a = %b(%c, %n);
    %a.%b = %c;
  for (let i = 0; i < %a.length; i++) {
  // %p %p %p %p %p %p
   * @param {%b} %a %p %p %p %p
  /**
   */
  throw new TypeError('%p %p %a %p %p');
exports.%a = %a;
    %a: %b,
    '%a-%b': '%c',
  const { %a, %b } = this.%c;
      %a.push(%b);
  return %a && %b.%c(%a, %n);
  } else if (typeof %a === 'function') {
export class %a extends %b {
  async %a(%b) {
    await this.%a(%b, { %c: %n });
  static %a = %b;
    this.%a = new %b(%c);
  // TODO: %p %p %p %p %p %p %p %p
    case '%a':
      break;
import { %a } from './%b';""")

TYPES = _lines("""\
    %a: %b;
    readonly %a?: %b | undefined;
    %a(%b: %c): void;
export interface %a {
}

    /**
     * %p %p %p %p %p %p %p
     */
export type %a = '%b' | '%c';
import { %a } from './%b';
export declare function %a(%b: %c): Promise<%a>;
    %a(%b: string, %c?: number): %a[];
export declare const %a: %b<%c>;
     * @default %n
declare module '%a' {""")

MARKDOWN = _lines("""\
## %a

- [`%a`](#%b): %p %p %p %p %p %p
%p %p %p %p %p %p %p %a %p %p %p %p.
```js
```
const %a = require('%b')
%a.%b('%c', %n)
%p %p `%a` %p %p %p %p %p %p, %p %p %p %b %p %p.
| `%a` | `%b` | %p %p %p %p |
* **%a**: %p %p %p ([#%n](%b/%c))""")

MINIFIED = _lines("""\
var %s=%s.%a;
function %s(%s,%s){return %s.%a(%s,%n)}
if(%s&&%s.%b)return %s;
%s.%a=%s,
(0,%s.%b)(%s),
%s?%s:%n,
for(var %s=0;%s<%s.length;%s++)
{key:'%a',value:function(){return this.%b}},
!%s||%s(%s);
switch(%s){case %n:%s=%s;break}
try{%s(%s)}catch(%s){}
%s.prototype.%c=function(%s){
}
e.exports=%s;""")

PYTHON = _lines("""\
    def %a(self, %b, %c=None):
        return self.%a(%b)
        if %a is None:
            %a = %b.%c(%n)
class %a(%b):
from .%a import %b
import %a


        \"\"\"%p %p %p %p %p %p.
        \"\"\"
        %p %p %p %p %p %p %p %p %p %p %a %p %p
        for %a in %b:
            raise ValueError(f'%p %p {%a}')
    @property
        self.%a = %b
    # %p %p %p %p %p %p %p
        %a, %b = %c.%a(%b)
            %a=%b,
        with %a.%b(%c) as %a:
        assert %a == %b[%n]
            '%a': %b,
        except %aError:
    >>> %a.%b(%n, %n)
        %a : %b
            %p %p %p %p %p %p %p %p %p""")

JSON = _lines("""\
    "%a-%b": "^%n.%n.0",
    "%a": "%b",
  "%a": {
  },
    "%a:%b": "%a --%c %b",
    "url": "git+ssh://git@example.org/%a/%b.git"
  "description": "%p %p %p %p %p",
      "./%a/%b.js",""")
